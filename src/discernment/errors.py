"""Errors that a user can mend.

Every error that the user's input can cause derives from `DiscernmentError`. Its message is one sentence that
says what is wrong, where, and what to do; the command line prints it without a traceback and exits with 2.

    DiscernmentError
    ├── DataError        a file, row, label, split or catalogue entry
    ├── DiskError        no room for what is to be written
    ├── ModelError       a model that cannot be found, loaded, cut or formatted
    │   └── NotFiniteError  a model that gives values that are not finite
    ├── RecipeError      a recipe, an option, a method name
    ├── RunError         a run directory that is damaged, foreign or busy
    └── TrainingError    a training that diverged or had nothing to learn from
"""


class DiscernmentError(Exception):
    """Something that the user can mend; its text is a single clear sentence."""


class DataError(DiscernmentError):
    """Prompts cannot be read, or what was read cannot be used."""


class DiskError(DiscernmentError):
    """There is no room for what is to be written."""


class ModelError(DiscernmentError):
    """A model cannot be found, loaded, cut or formatted."""


class NotFiniteError(ModelError):
    """A model gives values that are not finite, for one prompt at least."""


class RecipeError(DiscernmentError):
    """A recipe or an option is wrong."""


class RunError(DiscernmentError):
    """A run directory is damaged, belongs to another recipe, or is in use."""


class TrainingError(DiscernmentError):
    """A training diverged, or had nothing to learn from."""
