"""The exception tree. Every message names the object, what was found, what was expected and what to do.

NeuronrankError
├── ParamsError        params.yaml: unknown key, wrong type, value out of range
├── UnknownName        a method, mask rule, text or architecture that no sound file provides; a statistic likewise
├── SourceError        a model or a text that cannot be fetched, or is not what was asked for
├── ArtifactError      an artifact that is missing, incomplete, corrupt or of another schema
├── MismatchError      two artifacts, or an artifact and a model, that do not belong together
├── NotFiniteError     NaN or infinity where a number is needed
├── DegenerateError    a statistic that cannot rank anything (all zero, all equal)
└── StorageError       the disk refused a write, or another process is writing the same output
"""


class NeuronrankError(Exception):
    """Anything that a user can mend; a stage prints it as one line and exits with code 1."""


class ParamsError(NeuronrankError):
    """A parameter is unknown, missing, of the wrong type or out of range."""


class UnknownName(NeuronrankError):
    """A name that no file of the room provides, or only a broken one; a statistic that there is not."""


class SourceError(NeuronrankError):
    """A model or text source is missing, corrupt, too short, or not what its checksum promises."""


class ArtifactError(NeuronrankError):
    """An artifact is missing, incomplete, corrupt, or of a schema that this version does not read."""


class MismatchError(NeuronrankError):
    """Two things that must come from the same model or text do not."""


class NotFiniteError(NeuronrankError):
    """A weight, statistic or score is NaN or infinite."""


class DegenerateError(NeuronrankError):
    """A statistic is all zero or all equal, so that ranking by it would be meaningless."""


class StorageError(NeuronrankError):
    """Writing failed: disk full, read-only directory, another process at the same output."""
