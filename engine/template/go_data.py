"""The data that Ollama passes to its templates, in Go's types: api/types.go and template/template.go.

Numbers from JSON are float64.  Names of properties and arguments are sorted.  Keywords of a tool's schema that Ollama
does not know are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..go.fmt import json_text
from ..go.values import Map, Slice, Struct, go_value

TOOL_KEYS = {"Type": "type", "Items": "items?", "Function": "function"}
FUNCTION_KEYS = {"Name": "name", "Description": "description", "Parameters": "parameters"}
PARAMETERS_KEYS = {
    "Type": "type",
    "Defs": "$defs?",
    "Items": "items?",
    "Required": "required?",
    "Properties": "properties",
}
PROPERTY_KEYS = {
    "AnyOf": "anyOf?",
    "Type": "type?",
    "Items": "items?",
    "Description": "description?",
    "Enum": "enum?",
    "Properties": "properties?",
    "Required": "required?",
}
TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def go_messages(messages: Sequence[Mapping[str, Any]]) -> Slice:
    """Build `.Messages`."""
    items = [
        Struct(
            "*template.templateMessage",
            {
                "Role": message.get("role", ""),
                "Content": message.get("content", ""),
                "Thinking": message.get("thinking") or "",
                "Images": _slice(message.get("images"), "[]api.ImageData"),
                "ToolCalls": _slice(map(_call, message.get("tool_calls") or ()), "[]template.templateToolCall"),
                "ToolName": message.get("tool_name") or "",
                "ToolCallID": message.get("tool_call_id") or "",
            },
        )
        for message in messages
    ]
    return _slice(items, "[]*template.templateMessage")


def go_tools(tools: Sequence[Mapping[str, Any]] | None) -> Slice:
    """Build `.Tools`."""
    return _slice(map(_tool, tools or ()), "template.templateTools", json_text)


def _object(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is an object, else {}; a request may contain anything in place of a schema."""
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _slice(items: Any, go_type: str, as_text: Callable[[Any], str] | None = None) -> Slice:
    made = list(items or ())
    return Slice(made, go_type, not made, as_text)


def _call(call: Mapping[str, Any]) -> Struct:
    function = _object(call.get("function"))
    fields = {
        "Index": function.get("index") or 0,
        "Name": _text(function.get("name")),
        "Arguments": Map(go_value(_object(function.get("arguments"))), "template.templateArgs", json_text),
    }
    made = Struct("template.templateToolCallFunction", fields)
    return Struct("template.templateToolCall", {"ID": _text(call.get("id")), "Function": made})


def _tool(tool: Mapping[str, Any]) -> Struct:
    """Build a tool.  Its Function prints as JSON, which templates expect; Ollama prints a struct since late 2025."""
    function = _object(tool.get("function"))
    parameters = _object(function.get("parameters"))
    given = parameters.get("properties")
    properties = sorted(_object(given).items())
    fields = {
        "Type": _text(parameters.get("type")),
        "Defs": go_value(parameters.get("$defs")),
        "Items": go_value(parameters.get("items")),
        "Required": _slice(_texts(parameters.get("required")), "[]string"),
        "Properties": Map(
            {name: _property(_object(schema)) for name, schema in properties},
            "template.templateProperties",
            json_text,
            is_nil=not isinstance(given, dict),
        ),
    }
    described = {
        "Name": _text(function.get("name")),
        "Description": _text(function.get("description")),
        "Parameters": Struct("template.templateToolFunctionParameters", fields, PARAMETERS_KEYS),
    }
    offered = {
        "Type": _text(tool.get("type")),
        "Items": go_value(tool.get("items")),
        "Function": Struct("template.templateToolFunction", described, FUNCTION_KEYS, json_text),
    }
    return Struct("template.templateTool", offered, TOOL_KEYS, json_text)


def _property(schema: Mapping[str, Any]) -> Struct:
    """Build one parameter of a tool; keywords unknown to Ollama are dropped, nested names keep their order."""
    types = [schema["type"]] if isinstance(schema.get("type"), str) else _texts(schema.get("type"))
    choices = schema.get("anyOf") if isinstance(schema.get("anyOf"), list) else []
    any_of = [_property(_object(choice)) for choice in choices or ()]
    given = schema.get("properties")
    inner = {name: _property(_object(value)) for name, value in _object(given).items()}
    fields = {
        "AnyOf": _slice(any_of, "[]api.ToolProperty"),
        "Type": _slice(types, "api.PropertyType", _types_text),
        "Items": go_value(schema.get("items")),
        "Description": _text(schema.get("description")),
        "Enum": go_value(schema["enum"]) if isinstance(schema.get("enum"), list) else [],
        "Properties": Struct("*api.ToolPropertiesMap", inner) if isinstance(given, dict) else None,
        "Required": _slice(_texts(schema.get("required")), "[]string"),
    }
    alike = [choice.methods["ToTypeScriptType"]() for choice in any_of]
    name = " | ".join(alike or [TYPESCRIPT.get(type, "any") for type in types]) or "any"
    return Struct("api.ToolProperty", fields, PROPERTY_KEYS, methods={"ToTypeScriptType": lambda: name})


def _types_text(types: Sequence[str]) -> str:
    """Format as PropertyType.String does: a single type as it is, several as a list."""
    return f"[{' '.join(types)}]" if len(types) > 1 else "".join(types)
