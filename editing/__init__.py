"""UltraEdit (arXiv 2505.14679): write facts into a language model's weights, with no training.

>>> from editing import Editor, EditRequest
>>> editor = Editor.from_pretrained("path/to/model")
>>> editor.apply([EditRequest("The capital of Kiribati is", "South Tarawa")])
>>> editor.save("path/to/edited")
"""

from editing.config import EditorConfig
from editing.editor import Editor
from editing.errors import InputError, InvalidRequest, ModelError, OutOfMemory, TurnRefused, UltraEditError, WorkerLost
from editing.requests import EditRequest
from editing.turn import TurnReport

__all__ = [
    "EditRequest",
    "Editor",
    "EditorConfig",
    "InputError",
    "InvalidRequest",
    "ModelError",
    "OutOfMemory",
    "TurnRefused",
    "TurnReport",
    "UltraEditError",
    "WorkerLost",
]
