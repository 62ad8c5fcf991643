"""The commands of ``csa-spec``, a module each: ``add`` adds its arguments, ``run`` does what it is for.

None imports torch before it runs.
"""

from csa_spec.commands import case, check, compare, judge, replay, selftest, vectors

COMMANDS = (check, replay, case, compare, selftest, vectors, judge)
"""In the order of the help"""
