"""Pictures of failures, and reports as HTML and Markdown."""
