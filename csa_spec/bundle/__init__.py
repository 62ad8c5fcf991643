"""The bundle of a failure: a folder for an issue, with a script that needs nothing of this package."""

from csa_spec.bundle.reading import BundleError, Recorded, read_bundle
from csa_spec.bundle.write import problem_of_others, write_and_tell, write_bundle, write_bundles

__all__ = [
    "BundleError",
    "Recorded",
    "problem_of_others",
    "read_bundle",
    "write_and_tell",
    "write_bundle",
    "write_bundles",
]
