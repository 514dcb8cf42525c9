"""The slash commands of a conversation: /set, /show, /load, /save, /list, /clear, /bye, /?."""

from __future__ import annotations

from typing import Any

from ...engine.errors import BadOptions, EngineError, ModelNotFound
from ...engine.go.fmt import literal_of_value, text_of_value
from ...engine.go.text import one_line, several_lines
from ...engine.options import KINDS, OWN_OPTIONS, option_from_text
from .backend import is_file
from .client import ServerError
from .list import list_models
from .session import Session
from .show import PARTS, information_text

HELP = '''Available Commands:
  /set            Change session settings
  /show           Show model information
  /load <model>   Switch to another model
  /save <model>   Save the session as a model
  /list           List models
  /clear          Clear the conversation
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use """ to begin a multi-line message.
'''
TOPIC_HELP = {
    "set": """Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set the system message
  /set history           Enable input history
  /set nohistory         Disable input history
  /set wordwrap          Enable word wrap
  /set nowordwrap        Disable word wrap
  /set format json       Enable JSON mode
  /set noformat          Disable JSON mode
  /set think [level]     Enable thinking
  /set nothink           Disable thinking
  /set verbose           Show timings after each answer
  /set quiet             Hide timings
""",
    "show": """Available Commands:
  /show info         Show architecture, size and capabilities
  /show license      Show the model's license
  /show modelfile    Show the model's Modelfile
  /show parameters   Show the model's and the session's parameters
  /show system       Show the system message
  /show template     Show the prompt template
""",
    "shortcuts": """Available keyboard shortcuts:
  Ctrl + a            Move to the beginning of the line (Home)
  Ctrl + e            Move to the end of the line (End)
   Alt + b            Move back one word
   Alt + f            Move forward one word
  Ctrl + k            Delete to the end of the line
  Ctrl + u            Delete to the beginning of the line
  Ctrl + w            Delete the word before the cursor

  Ctrl + l            Clear the screen
  Ctrl + g            Edit the message in an editor
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


def run_command(session: Session, line: str) -> bool:
    """Run the command in `line`; return False to end the conversation."""
    verb, _, rest = line.partition(" ")
    rest = rest.strip()
    match verb:
        case "/bye" | "/exit":
            return False
        case "/?" | "/help":
            print(TOPIC_HELP.get(rest.lstrip("/"), HELP))
        case "/set":
            set_(session, rest)
        case "/show":
            show_command(session, rest)
        case "/load" | "/save" if not rest or " " in rest:
            print(f"Usage:\n  {verb} <modelname>")
        case "/load":
            load_command(session, rest)
        case "/save":
            save_command(session, rest)
        case "/list" | "/ls":
            print(list_models(rest, require_named_host=False), end="")
        case "/clear":
            session.clear()
            print("Cleared session context")
        case _:
            print_unknown(line)
    return True


def print_unknown(line: str) -> None:
    print(f"Unknown command '{line}'. Type /? for help")


def set_(session: Session, rest: str) -> None:
    """Run /set: change a parameter, the system message, or a display setting."""
    name, _, text = rest.partition(" ")
    match name:
        case "":
            print(TOPIC_HELP["set"])
        case "history" | "nohistory":
            session.history.enabled = name == "history"
        case "wordwrap" | "nowordwrap":
            session.wordwrap = name == "wordwrap"
            print(f"Set '{name}' mode.")
        case "verbose" | "quiet":
            session.verbose = name == "verbose"
            print(f"Set '{name}' mode.")
        case "system":
            if not text:
                return print(TOPIC_HELP["set"])
            session.set_system(text, multiline="\n" in text)
            print("Set system message.")
        case "format" if text == "json":
            session.update_request(format="json")
            print("Set format to 'json' mode.")
        case "format":
            print("Invalid or missing format. For 'json' mode use '/set format json'")
        case "noformat":
            session.update_request(format=None)
            print("Disabled format.")
        case "think" | "nothink":
            set_think(session, name, text)
        case "parameter":
            set_parameter(session, *text.split())
        case _:
            print_unknown(f"/set {rest}")


def set_think(session: Session, name: str, level: str) -> None:
    if "thinking" not in (session.backend.show(session.model).get("capabilities") or []):
        print(f'warning: model "{session.model}" does not support thinking output')
    session.update_request(think=(level or True) if name == "think" else False)
    print(f"Set '{name}' mode to '{level}'." if level else f"Set '{name}' mode.")


def set_parameter(session: Session, name: str = "", *texts: str) -> None:
    """Set option `name` for the session; without a name, print those that are numbers."""
    if not texts:
        kinds = "".join(
            f"  /set parameter {name} <{kind}>\n"
            for name, kind in KINDS.items()
            if kind in ("int", "float") and name not in OWN_OPTIONS
        )
        print(f"Available Parameters:\n{kinds}  /set parameter stop <string> <string> ...\n")
        return
    try:
        session.update_request(options={**session.request.options, name: option_from_text(name, texts)})
    except BadOptions as error:
        print(f"Couldn't set parameter: {literal_of_value(str(error))}")
    else:
        print(f"Set parameter '{name}' to '{', '.join(texts)}'")


def show_command(session: Session, part: str) -> None:
    """Run /show: print information about the model, or one part of it."""
    if part not in ("", "info", *PARTS):
        return print_unknown(f"/show {part}")
    if not part:
        return print(TOPIC_HELP["show"])
    try:
        answer = session.backend.show(session.model)
    except (EngineError, ServerError) as error:
        return print(f"error: {one_line(str(error))}")
    if part == "info":
        return print(information_text(answer), end="")
    set_here = session.system if part == "system" else ""
    if part == "parameters":
        print(several_lines(parameters_text(answer.get(part, ""), session)))
    else:
        print(several_lines(set_here or answer.get(part) or MISSING[part]))
        print()


def parameters_text(of_model: str, session: Session) -> str:
    """Format the model's and the session's parameters, one per line."""
    of_session = [
        f"{name:<30} {'[' + ' '.join(value) + ']' if isinstance(value, list) else text_of_value(value)}"
        for name, value in session.request.options.items()
    ]
    parts = [
        ("Model defined parameters:", [line for line in of_model.split("\n") if line]),
        ("User defined parameters:", of_session),
    ]
    shown = [f"{title}\n" + "".join(f"  {line}\n" for line in lines) for title, lines in parts if lines]
    return "\n".join(shown) or f"{MISSING['parameters']}\n"


def load_command(session: Session, model: str) -> None:
    """Run /load: switch to `model`."""
    print(f"Loading model '{model}'")
    try:
        session.switch_model(model)
    except ModelNotFound:
        print(f"Couldn't find model '{model}'")
    except ServerError as error:
        print(f"Couldn't find model '{model}'" if error.status == 404 else f"error: {one_line(str(error))}")
    except EngineError as error:
        print(f"error: {one_line(str(error))}")


def save_command(session: Session, model: str) -> None:
    """Run /save: create `model` from the session's model, settings and history.

    As in Ollama, the history includes the system messages.
    """
    if is_file(session.model):
        return print("error: cannot save a session with a GGUF file; import it with `numllama create` first")
    fields: dict[str, Any] = {
        "system": session.system,
        "parameters": session.request.options,
        "messages": session.messages,
    }
    try:
        for _ in session.backend.create(model, session.model, **{key: value for key, value in fields.items() if value}):
            pass
        print(f"Created new model '{model}'")
    except (EngineError, ServerError) as error:
        is_name = str(error).endswith("invalid model name")
        print(f"error: The model name '{model}' is invalid" if is_name else f"error: {one_line(str(error))}")
