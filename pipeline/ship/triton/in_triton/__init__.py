"""The code of the Triton model NAME_generate. It imports `pipeline.types` and `pipeline.runtime` alone.

`pipeline ship` copies this folder beside those two into the repository, so that the model runs where only
numpy, tokenizers, jinja2 and the runtime of its artefact are installed.
"""

FAILED = "the text could not be written: "
"""Begins the error of a request that was in order: on gRPC's stream nothing else tells whose fault it was."""
ERROR_STATUS = "return_error_status"
"""The field that makes gRPC's status begin every error: 'INVALID_ARGUMENT: the prompt is empty'."""
