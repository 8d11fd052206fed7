"""UltraEdit (arXiv 2505.14679): write facts into a language model's weights, with no training.

>>> from editing import Editor, EditRequest
>>> editor = Editor.from_pretrained("path/to/model")
>>> editor.apply([EditRequest("The capital of Kiribati is", "South Tarawa")])
>>> editor.save("path/to/edited")

Names are imported when they are first used: ``from editing import InputError`` costs milliseconds, since torch stays out.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from editing.config import EditorConfig
    from editing.editor import Editor
    from editing.errors import InputError, InvalidRequest, ModelError, OutOfMemory, TurnRefused, UltraEditError, WorkerLost
    from editing.messages import Message
    from editing.requests import EditRequest
    from editing.turn import TurnReport

_MODULES = {
    "EditRequest": "requests",
    "Editor": "editor",
    "EditorConfig": "config",
    "InputError": "errors",
    "InvalidRequest": "errors",
    "Message": "messages",
    "ModelError": "errors",
    "OutOfMemory": "errors",
    "TurnRefused": "errors",
    "TurnReport": "turn",
    "UltraEditError": "errors",
    "WorkerLost": "errors",
}
"""Each exported name with the module that defines it."""

__all__ = [
    "EditRequest",
    "Editor",
    "EditorConfig",
    "InputError",
    "InvalidRequest",
    "Message",
    "ModelError",
    "OutOfMemory",
    "TurnRefused",
    "TurnReport",
    "UltraEditError",
    "WorkerLost",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
