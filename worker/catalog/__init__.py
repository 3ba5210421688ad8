"""The catalog: one row describes one model, and everything else that names models or their abilities reads the row.

    MODELS                  the rows of the models that Aviary ships with     rows.py
    find(name, places)      name → row                                        lookup.py
    is_repository(name)     whether a name is owner/name                      lookup.py
    check(model, options)   raise Unsupported if the model cannot do it       abilities.py
    check_option(model, …)  the same for one option                           abilities.py
    lacking(model, …)       the error for something that other models can do  abilities.py
    honored(model, options) the options without those that it cannot honor    abilities.py
    OF_THE_DIARIZER         the options of a transcript's diarizer            abilities.py
    changes_nothing(…)      whether a value is what the model does anyway     abilities.py
    Model                   the fields of a row                               model.py
    Places                  where repositories may be on this machine         places.py
    language_code(text)     English name, or a code in any form → ISO code    languages.py
    language_name(code)     code → English name, as Whisper writes it         languages.py
    LANGUAGES               the codes of the languages with a name            languages.py

A name is an alias, an id, a repository, or the path of a .nemo file or of a checkpoint's folder. `facts.py` reads the
configuration of a checkpoint that is on this machine, and `rows.py` makes a row of it; before that, the name of a
repository shows its family. `NAME:audio_tower` is the audio tower of a Flamingo alone.
`higgs:PROCESSOR` is Higgs with the features of another processor, a repository or a folder.
"""

from worker.catalog.abilities import OF_THE_DIARIZER, changes_nothing, check, check_option, honored, lacking
from worker.catalog.languages import LANGUAGES, language_code, language_name
from worker.catalog.lookup import find, is_repository
from worker.catalog.model import Model
from worker.catalog.places import Places
from worker.catalog.rows import MODELS

__all__ = [
    "LANGUAGES",
    "MODELS",
    "OF_THE_DIARIZER",
    "Model",
    "Places",
    "changes_nothing",
    "check",
    "check_option",
    "find",
    "honored",
    "is_repository",
    "lacking",
    "language_code",
    "language_name",
]
