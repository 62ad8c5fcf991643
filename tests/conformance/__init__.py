"""The properties that run against a candidate: ``pytest --pyargs csa_spec.conformance --csa-candidate NAME``."""
