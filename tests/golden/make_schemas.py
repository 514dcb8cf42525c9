"""Write schemas.json: JSON schemas as pydantic, zod and typebox generate them, from types that people use.

mkdir /tmp/js && cd /tmp/js && npm install zod @sinclair/typebox
python tests/golden/make_schemas.py /tmp/js
"""

import datetime
import decimal
import enum
import ipaddress
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar, Union

import annotated_types
from pydantic import (
    AnyUrl,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    HttpUrl,
    Json,
    NegativeInt,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    RootModel,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    conint,
    conlist,
    conset,
    constr,
)
from typing_extensions import TypedDict

HERE = Path(__file__).parent
T = TypeVar("T")


class Color(enum.Enum):
    RED, GREEN, BLUE = "red", "green", "blue"


class Level(enum.IntEnum):
    LOW, HIGH = 1, 2


class Address(BaseModel):
    """Where a person lives."""

    street: str
    city: str
    zip: str | None = None


class Person(BaseModel):
    name: str = Field(description="the full name", min_length=1, max_length=100)
    age: int = Field(ge=0, le=150)
    email: str | None = None
    addresses: list[Address] = []
    favourite: Color = Color.RED


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: int
    tags: list[str] = Field(default_factory=list, max_length=5)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    id: int


class Tree(BaseModel):
    value: int
    left: Optional["Tree"] = None
    right: Optional["Tree"] = None


class Node(BaseModel):
    name: str
    children: list["Node"] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    breed: str


class Pet(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")
    n: int


class A(BaseModel):
    type: Literal["a"] = "a"
    x: int = 1


class B(BaseModel):
    type: Literal["b"] = "b"
    y: str = ""


class Tagged(BaseModel):
    u: A | B = Field(discriminator="type")


class Steps(BaseModel):
    actions: list[Annotated[A | B, Field(discriminator="type")]]


class Untagged(BaseModel):
    either: Cat | Dog | str


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: str | None = None


class Event(BaseModel):
    at: datetime.datetime
    day: datetime.date
    clock: datetime.time
    lasts: datetime.timedelta
    id: uuid.UUID


class Numbers(BaseModel):
    a: PositiveInt
    b: NegativeInt
    c: NonNegativeFloat
    d: conint(multiple_of=5)
    e: float = Field(gt=0, lt=1)
    f: decimal.Decimal
    g: PositiveFloat


class Strings(BaseModel):
    code: constr(pattern=r"^[A-Z]{3}-\d{4}$")
    short: Annotated[str, StringConstraints(min_length=2, max_length=8)]
    secret: SecretStr
    url: HttpUrl


class Maps(BaseModel):
    counts: dict[str, int]
    nested: dict[str, list[Address]]
    anything: dict[str, Any]
    by_color: dict[Color, int]
    by_number: dict[int, str]


class Sets(BaseModel):
    names: set[str]
    colors: set[Color]
    frozen: frozenset[int]


class Tuples(BaseModel):
    pair: tuple[int, str]
    many: tuple[int, ...]
    mixed: tuple[float, bool, Address]


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Movie(TypedDict, total=False):
    title: str
    year: int


class Step(BaseModel):
    explanation: str
    output: str


class Reasoning(BaseModel):
    steps: list[Step]
    final_answer: str


class Review(BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]
    score: Annotated[float, Field(ge=0, le=1)]
    aspects: dict[str, Literal["good", "bad"]] = {}


class Invoice(BaseModel):
    number: str
    issued: datetime.date
    lines: conlist(Strict, min_length=1, max_length=20)
    total: decimal.Decimal = Field(max_digits=8, decimal_places=2)
    paid: bool = False


class Linked(BaseModel):
    value: str
    next: Optional["Linked"] = None


class Text(RootModel[str]):
    pass


class Names(RootModel[list[str]]):
    pass


class Search(BaseModel):
    query: str
    n: int = Field(10, ge=1, le=100)
    filters: dict[str, str | int | bool | None] | None = None


class Geo(BaseModel):
    lat: float = Field(ge=-90, le=90)
    lon: float = Field(ge=-180, le=180)


class Shape(BaseModel):
    shape: Annotated[Union["Circle", "Square"], Field(discriminator="type")]


class Circle(BaseModel):
    type: Literal["circle"] = "circle"
    radius: float


class Square(BaseModel):
    type: Literal["square", "box"]
    side: float


def PYDANTIC():
    Shape.model_rebuild()
    kind = Discriminator("kind")
    types = [
        Person, Address, Strict, Open, Tree, Node, Pet, Tagged, Steps, Untagged, Page[Person], Page[int], Event,
  Numbers,
        Strings, Maps, Sets, Tuples, Point, Movie, Reasoning, Review, Invoice, Linked, Text, Names, Search, Geo, Shape,
        str, int, float, bool, None, Any, list[int], list[Any], dict, list, dict[str, float], dict[str, Any], set[str],
        set[int], set[Color], set[Literal["a", "b"]], set[bool], frozenset[float], tuple[int, str], tuple[()],
        Color, Level, Literal["a", 1, None, True], Literal["one"], str | None, int | str, list[int | None], bytes,
        datetime.datetime, datetime.date, datetime.time, datetime.timedelta, uuid.UUID, AnyUrl, HttpUrl, Path,
        ipaddress.IPv4Address, ipaddress.IPv6Address, decimal.Decimal, Json[list[int]], complex | None,
        Annotated[int, annotated_types.Interval(ge=-(2**63), le=2**63 - 1)], Annotated[int, Field(ge=0, le=2**64 - 1)],
        Annotated[float, Field(ge=-3.402823466385289e38, le=3.402823466385289e38)],
        Annotated[list[int], Field(min_length=2, max_length=4)], conset(int, min_length=1, max_length=3),
        Annotated[dict[str, int], Field(min_length=1)], Annotated[dict[str, int], Field(max_length=3)],
        Annotated[str, Field(pattern="^a+$")], Annotated[dict[str, Person], Field(min_length=1, max_length=2)],
        Annotated[Cat | Dog, kind], list[Annotated[Cat | Dog, kind]], dict[str, Cat | Dog], list[Address | None],
        dict[Annotated[str, Field(pattern="^[a-z]+$")], int], dict[Literal["x", "y"], int], dict[uuid.UUID, str],
    ]  # fmt: skip
    for one in types:
        try:
            yield TypeAdapter(one).json_schema()
        except Exception as error:
            if "CoreSchema" not in str(error) and "Cannot generate" not in str(error):
                raise


SCRIPT = r"""
const { z } = require("zod"), { Type: t } = require("@sinclair/typebox");
const address = z.object({ street: z.string(), city: z.string(), zip: z.string().optional() });
const category = z.object({ name: z.string(), get sub() { return z.array(category); } });
const linked = z.object({ value: z.number(), get next() { return linked.nullable(); } });
const Z = [
  z.string(), z.number(), z.boolean(), z.null(), z.any(), z.unknown(), z.int(), z.int32(), z.uint32(), z.float32(),
  z.float64(),
  z.string().min(2).max(5), z.string().regex(/^[a-z]+$/), z.email(), z.url(), z.uuid(), z.iso.datetime(), z.iso.date(),
  z.iso.time(), z.iso.duration(), z.ipv4(), z.ipv6(), z.base64(), z.nanoid(), z.cuid2(), z.ulid(), z.e164(), z.emoji(),
  z.string().startsWith("ab"), z.string().endsWith("yz"), z.string().includes("mid"), z.string().length(4),
  z.enum(["a", "b"]), z.literal("x"), z.literal([1, "two", null]), z.nativeEnum({ A: 1, B: 2 }), z.literal(42),
  z.number().min(1).max(9), z.number().positive(), z.number().nonnegative(), z.number().multipleOf(0.5),
  z.number().int().gt(3),
  z.array(z.string()), z.array(z.number()).min(1).max(3), z.array(address).nonempty(), z.tuple([z.string(),
  z.number()]),
  z.tuple([z.string()], z.number()), z.record(z.string(), z.number()), z.record(z.string(), address),
  z.record(z.enum(["a", "b"]), z.int()),
  z.partialRecord(z.enum(["a", "b"]), z.boolean()), z.record(z.string().regex(/^k_/), z.string()),
  z.record(z.string(), z.any()),
  z.record(z.uuid(), z.number()), address, z.strictObject({ a: z.string() }), z.looseObject({ a: z.string() }),
  z.object({ a: z.string() }).catchall(z.number()), address.partial(), address.extend({ n: z.int().optional() }),
  z.object({ a: z.string().nullable(), b: z.string().nullish(), c: z.string().default("x") }), category, linked,
  z.union([z.string(), z.number()]), z.union([address, z.string()]), z.nullable(address), z.object({}),
  z.discriminatedUnion("type", [z.object({ type: z.literal("a"), x: z.number() }), z.object({ type: z.literal("b"),
  y: z.string() })]),
  z.array(z.discriminatedUnion("op", [z.object({ op: z.literal("add"), n: z.number() }),
  z.object({ op: z.enum(["clear", "reset"]) })])),
  z.intersection(z.object({ a: z.string() }), z.object({ b: z.number() })), z.object({ a: address,
  b: z.array(address) }),
  z.object({ steps: z.array(z.object({ explanation: z.string(), output: z.string() })), final_answer: z.string() }),
  z.object({ never: z.never().optional(), a: z.string() }), z.string().describe("a text"), z.object({ d: z.iso.date(),
  u: z.uuid().optional() }),
  z.templateLiteral(["id-", z.number()]), z.string().readonly(), z.json(),
  z.stringbool ? z.string().trim() : z.string(),
  z.object({ sentiment: z.enum(["good", "bad"]), score: z.number().min(0).max(1), tags: z.array(z.string()).max(5) }),
];
const T = t.Object({ x: t.Number(), y: t.Number() });
const Y = [
  t.String(), t.Number(), t.Integer(), t.Boolean(), t.Null(), t.Any(), t.Unknown(), t.Literal("a"), t.Literal(1),
  t.Never(),
  t.String({ minLength: 1, maxLength: 9 }), t.String({ pattern: "^[0-9]+$" }), t.String({ format: "date-time" }),
  t.RegExp(/ab?c/),
  t.Number({ minimum: 0, exclusiveMaximum: 1 }), t.Integer({ multipleOf: 3 }), t.Array(t.Number()), t.Array(T,
  { minItems: 1 }),
  t.Array(t.String(), { uniqueItems: true }), t.Array(t.Number(), { uniqueItems: true, maxItems: 3 }),
  t.Array(t.Number(), { contains: t.Number({ minimum: 5 }), minItems: 1 }), t.Tuple([t.Number(), t.String()]),
  t.Tuple([]), T,
  t.Object({ a: t.Optional(t.String()), b: t.Number() }), t.Object({ a: t.String() }, { additionalProperties: false }),
  t.Object({}, { additionalProperties: t.Number() }), t.Object({ a: t.Optional(t.Number()),
  b: t.Optional(t.Number()) }, { minProperties: 1 }),
  t.Record(t.String(), t.Number()), t.Record(t.Union([t.Literal("a"), t.Literal("b")]), t.Number()),
  t.Record(t.Number(), t.String()),
  t.Record(t.RegExp(/^x-/), t.String()), t.Union([t.String(), t.Number()]), t.Union([t.Literal("a"), t.Literal("b")]),
  t.Union([T, t.Null()]), t.Enum({ A: "a", B: "b" }), t.Intersect([T, t.Object({ z: t.Number() })]),
  t.Intersect([T, t.Object({ z: t.Number() })], { unevaluatedProperties: false }), t.Composite([T,
  t.Object({ z: t.Number() })]),
  t.Partial(T), t.Pick(T, ["x"]), t.Omit(T, ["x"]), t.KeyOf(T), t.Required(t.Partial(T)), t.Not(t.String()),
  t.Not(t.Literal("a")),
  t.Recursive((self) => t.Object({ id: t.String(), nodes: t.Array(self) })), t.TemplateLiteral("on${'Open'|'Close'}"),
  t.Extract(t.Union([t.String(), t.Number()]), t.String()), t.Exclude(t.Union([t.Literal("a"), t.Literal("b")]),
  t.Literal("a")),
  t.Object({ steps: t.Array(t.Object({ explanation: t.String(), output: t.String() })), final_answer: t.String() }),
  t.Object({ kind: t.Union([t.Literal("a"), t.Literal("b")]), n: t.Optional(t.Union([t.Integer(), t.Null()])) }),
];
const zod = Z.flatMap((one) => { try { return [z.toJSONSchema(one)]; } catch { return []; } });
console.log(JSON.stringify({ zod, typebox: Y.filter((one) => !Array.isArray(one)) }));
"""


def main(folder):
    """Write the schemas that can be expressed, those of a library in a list."""
    made = subprocess.run(["node", "-e", SCRIPT], cwd=folder, capture_output=True, text=True, check=True).stdout
    schemas = {"pydantic": [*PYDANTIC()], **json.loads(made)}
    lines = [f'"{name}": [\n' + ",\n".join(map(json.dumps, listed)) + "\n]" for name, listed in schemas.items()]
    (HERE / "schemas.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1])
