"""The catalog: one row describes one model, and everything else that names models or their abilities reads the row.

    MODELS                  the rows of the models that Aviary ships with     rows.py
    find(name)              name → row                                        lookup.py
    is_repository(name)     whether a name is owner/name                      lookup.py
    check(model, options)   raise Unsupported if the model cannot do it       abilities.py
    check_option(model, …)  the same for one option                           abilities.py
    Model                   the fields of a row                               model.py

A name is an alias, an id, a repository whose name shows its family, or the path of a .nemo file or of a checkpoint's
folder, whose configuration is then read. `NAME:audio_tower` is the audio tower of a Flamingo alone.
`higgs:PROCESSOR` is Higgs with the features of another processor, a repository or a folder.
"""

from worker.catalog.abilities import check, check_option
from worker.catalog.lookup import find, is_repository
from worker.catalog.model import Model
from worker.catalog.rows import MODELS

__all__ = ["MODELS", "Model", "check", "check_option", "find", "is_repository"]
