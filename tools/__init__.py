"""What maintainers run to measure the suite itself; nothing of it is installed.

Each command prints all that it measured and, with ``--write``, makes its page of ``docs/``::

    python -m tools.power --seeds 0,1,2 --jobs 2 --write     # which checks find each known bug; a plain grid
    python -m tools.inputs --profile smoke --jobs 2 --write  # which cases known bugs need
    python -m tools.names --jobs 2 --write                   # how often a diagnosis names the right bug
    python -m tools.minimality --jobs 2 --write              # whether failing cases shrink to the smallest

``matrix`` and ``grid`` are parts of ``power``, ``smaller_cases`` is one of ``minimality``; ``command`` is
what they share.
"""
