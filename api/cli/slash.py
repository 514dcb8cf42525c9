"""The commands within a conversation: /set, /show, /load, /save, /list, /clear, /bye, /?."""

from __future__ import annotations

from typing import Any

from ...engine.errors import BadOptions, EngineError, ModelNotFound
from ...engine.go.fmt import literal_of_value, text_of_value
from ...engine.options import KINDS, option_from_text
from .client import ServerError
from .find import is_file
from .list import list_models
from .session import Session
from .show import PARTS, information

HELP = '''Available Commands:
  /set            Set what holds for this conversation
  /show           Show what the model is made of
  /load <model>   Begin anew with another model
  /save <model>   Keep model, settings and conversation as a model
  /list           List models
  /clear          Forget what was said
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keys

Use """ to begin a message of several lines.
'''
HELP_ON = {
    "set": """Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set the system message
  /set history           Remember what is typed
  /set nohistory         Do not
  /set wordwrap          Break lines between words
  /set nowordwrap        Do not
  /set format json       Have answers in JSON
  /set noformat          Do not
  /set think [level]     Have the model think first
  /set nothink           Do not
  /set verbose           Show counts and durations
  /set quiet             Do not
""",
    "show": """Available Commands:
  /show info         Architecture, sizes, capabilities
  /show license      The model's licences
  /show modelfile    The Modelfile that would make it
  /show parameters   The model's parameters, and those set here
  /show system       The system message
  /show template     The prompt template
""",
    "shortcuts": """Available keyboard shortcuts:
  Ctrl + a            Move to the beginning of the line (Home)
  Ctrl + e            Move to the end of the line (End)
   Alt + b            Move back a word
   Alt + f            Move on a word
  Ctrl + k            Delete what is after the cursor
  Ctrl + u            Delete what is before the cursor
  Ctrl + w            Delete the word before the cursor

  Ctrl + l            Clear the screen
  Ctrl + g            Write the message in an editor
  Ctrl + c            Stop the answer
  Ctrl + d            Exit (/bye)
""",
}
MISSING = {
    "license": "No license was specified for this model.",
    "modelfile": "No Modelfile was specified for this model.",
    "parameters": "No parameters were specified for this model.",
    "system": "No system message was specified for this model.",
    "template": "No prompt template was specified for this model.",
}


def command(session: Session, line: str) -> bool:
    """Do what `line` says; False ends the conversation."""
    verb, _, rest = line.partition(" ")
    rest = rest.strip()
    match verb:
        case "/bye" | "/exit":
            return False
        case "/?" | "/help":
            print(HELP_ON.get(rest.lstrip("/"), HELP))
        case "/set":
            set_(session, rest)
        case "/show":
            show_command(session, rest)
        case "/load" | "/save" if not rest or " " in rest:
            print(f"Usage:\n  {verb} <modelname>")
        case "/load":
            load_command(session, rest)
        case "/save":
            save(session, rest)
        case "/list" | "/ls":
            print(list_models(rest, as_told=False), end="")
        case "/clear":
            session.clear()
            print("Cleared session context")
        case _:
            unknown(line)
    return True


def unknown(line: str) -> None:
    print(f"Unknown command '{line}'. Type /? for help")


def set_(session: Session, rest: str) -> None:
    """/set: a parameter, the system text, or how the conversation is shown."""
    what, _, text = rest.partition(" ")
    match what:
        case "":
            print(HELP_ON["set"])
        case "history" | "nohistory":
            session.history.enabled = what == "history"
        case "wordwrap" | "nowordwrap":
            session.wordwrap = what == "wordwrap"
            print(f"Set '{what}' mode.")
        case "verbose" | "quiet":
            session.verbose = what == "verbose"
            print(f"Set '{what}' mode.")
        case "system":
            if not text:
                return print(HELP_ON["set"])
            session.set_system(text, several_lines="\n" in text)
            print("Set system message.")
        case "format" if text == "json":
            session.want(format="json")
            print("Set format to 'json' mode.")
        case "format":
            print("Invalid or missing format. For 'json' mode use '/set format json'")
        case "noformat":
            session.want(format=None)
            print("Disabled format.")
        case "think" | "nothink":
            set_think(session, what, text)
        case "parameter":
            set_parameter(session, *text.split())
        case _:
            unknown(f"/set {rest}")


def set_think(session: Session, what: str, level: str) -> None:
    if "thinking" not in (session.models.show(session.model).get("capabilities") or []):
        print(f'warning: model "{session.model}" does not support thinking output')
    session.want(think=(level or True) if what == "think" else False)
    print(f"Set '{what}' mode to '{level}'." if level else f"Set '{what}' mode.")


def set_parameter(session: Session, name: str = "", *texts: str) -> None:
    if not texts:
        kinds = "".join(
            f"  /set parameter {name} <{kind}>\n" for name, kind in KINDS.items() if kind in ("int", "float")
        )
        print(f"Available Parameters:\n{kinds}  /set parameter stop <string> <string> ...\n")
        return
    try:
        session.want(options={**session.request.options, name: option_from_text(name, texts)})
    except BadOptions as error:
        print(f"Couldn't set parameter: {literal_of_value(str(error))}")
    else:
        print(f"Set parameter '{name}' to '{', '.join(texts)}'")


def show_command(session: Session, what: str) -> None:
    """/show: the model, or one part of it."""
    if what not in ("", "info", *PARTS):
        return unknown(f"/show {what}")
    if not what:
        return print(HELP_ON["show"])
    try:
        answer = session.models.show(session.model)
    except (EngineError, ServerError) as error:
        return print(f"error: {error}")
    if what == "info":
        return print(information(answer), end="")
    own = session.system if what == "system" else ""
    if what == "parameters":
        print(parameters_text(answer.get(what, ""), session))
    else:
        print(own or answer.get(what) or MISSING[what])
        print()


def parameters_text(models: str, session: Session) -> str:
    """The model's parameters and the session's, one on a line."""
    own = [
        f"{name:<30} {'[' + ' '.join(value) + ']' if isinstance(value, list) else text_of_value(value)}"
        for name, value in session.request.options.items()
    ]
    parts = [("Model defined parameters:", models.splitlines()), ("User defined parameters:", own)]
    shown = [f"{title}\n" + "".join(f"  {line}\n" for line in lines) for title, lines in parts if lines]
    return "\n".join(shown) or f"{MISSING['parameters']}\n"


def load_command(session: Session, model: str) -> None:
    """Begin anew with `model`."""
    print(f"Loading model '{model}'")
    try:
        session.change(model)
    except ModelNotFound:
        print(f"Couldn't find model '{model}'")
    except ServerError as error:
        print(f"Couldn't find model '{model}'" if error.status == 404 else f"error: {error}")
    except EngineError as error:
        print(f"error: {error}")


def save(session: Session, model: str) -> None:
    """Make `model` of the session's: its settings and everything said, the system's words among it, as in Ollama."""
    if is_file(session.model):
        return print("error: what is saved is a model of the store, and this one is a file")
    more: dict[str, Any] = {
        "system": session.system,
        "parameters": session.request.options,
        "messages": session.messages,
    }
    try:
        for _ in session.models.create(model, session.model, **{key: value for key, value in more.items() if value}):
            pass
        print(f"Created new model '{model}'")
    except (EngineError, ServerError) as error:
        is_name = str(error).endswith("invalid model name")
        print(f"error: The model name '{model}' is invalid" if is_name else f"error: {error}")
