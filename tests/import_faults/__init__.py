"""Candidates that cannot be imported: ``import_faults.exits:attend``, say."""
