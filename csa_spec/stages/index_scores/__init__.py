"""The stage ``index_scores``."""
