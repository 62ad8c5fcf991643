"""Test vectors: inputs and right answers in files, for implementations in any language.

``files`` is their format, ``writing`` makes them, ``judging`` holds the answers of another program against them;
``figures`` compares the specification with figures that others recorded.
"""
