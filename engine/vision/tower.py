"""The vision tower: an image in, rows in place of token embeddings out.  CLIP's tower, LLaVA's projectors.

    image -> tiles of image_size x image_size pixels -> patches -> patch_embd
    x = [patches, class token] + position_embd
    each layer:   x += attn(ln1(x))               every position attends to every other
                  x += ffn(ln2(x))
    rows = projector(x without its first row)

The last layer of the file is not run: LLaVA uses the features before it.  `order` is the place of the class token:

    "llama.cpp"     after the patches, but the first row is dropped: rows are patches 1 .. n - 1 and the class token,
                    as in llama.cpp 0c1e57098; the default
    "huggingface"   before the patches, and dropped: rows are patches 0 .. n - 1, as the models were trained

Values pass through `tap` under the names of llama.cpp's clip.cpp.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from ...kernels import Attention, Kernels, Tensor
from ..errors import BadOptions, ModelError, UnsupportedArchitecture
from ..gguf.dialect import projector_view
from ..gguf.read import GGUF, MappedFile, described
from ..model.affine import LayerNorm, Linear, read_layer_norm, read_linear, read_vector
from ..model.trace import Tap, no_tap
from ..model.weights import Tensors
from .pixels import MAX_PIXELS, decode_image
from .projector import PROJECTORS, Projector

ORDERS = ("llama.cpp", "huggingface")
MAX_PATCHES_PER_SIDE = 128  # every patch attends to every other: twice Gemma 3's side takes 16 times its time
PAD_COLOR = (122, 116, 104)  # CLIP's mean as bytes
TILED_PAD_COLOR = (0, 0, 0)  # llama.cpp 0c1e57098 sets PAD_COLOR only for models without tiles
TOWER = ("v.", "mm.", "model.image_newline")  # prefixes of a tower's and a projector's tensors


@dataclass(frozen=True, eq=False)
class VisionHparams:
    """Sizes of a vision tower, under llama.cpp's names.

    n_layer     layers that are run, one less than the file's block_count
    ffn_op      "gelu", "gelu_quick" or "silu"
    mean, std   f32 [3], for red, green and blue between 0 and 1
    tiled       sizes (width, height), in whole tiles, to which a large image is scaled (LLaVA 1.6)
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_ff: int
    image_size: int
    patch_size: int
    norm_eps: float
    ffn_op: str
    mean: np.ndarray
    std: np.ndarray
    tiled: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class VisionLayer:
    """One block, `v.blk.<il>`."""

    ln1: LayerNorm
    attn_q: Linear
    attn_k: Linear
    attn_v: Linear
    attn_out: Linear
    ln2: LayerNorm
    ffn_up: Linear
    ffn_down: Linear


@dataclass(frozen=True, eq=False)
class Vision:
    """A loaded projector file: immutable, shared by all sequences.

    file     the file it is mapped from, which may be the text model's
    nbytes   bytes of its own tensors
    n_embd   width of a row: the text model's n_embd
    n_rows   rows of one tile; a large image may have several tiles (`hparams.tiled`)
    """

    file: MappedFile
    hparams: VisionHparams
    patch_embd: Tensor
    patch_bias: np.ndarray | None
    class_embd: np.ndarray | None
    position_embd: np.ndarray
    pre_ln: LayerNorm | None
    blk: tuple[VisionLayer, ...]
    post_ln: LayerNorm | None
    projector: Projector
    nbytes: int
    order: str = "llama.cpp"

    @property
    def n_embd(self) -> int:
        return self.projector.n_out

    @property
    def n_rows(self) -> int:
        return (self.hparams.image_size // self.hparams.patch_size) ** 2 // self.projector.reduction

    def encode(self, image: bytes, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
        """Encode a JPEG, PNG or WebP file to rows for the text model.  -> float [n_tiles * n_rows, n_embd]

        The same image gives the same bits with any number of threads.  Raises: BadImage
        """
        tiles = tiles_of(decode_image(image), self.hparams, kernels)
        return np.concatenate([self.rows(tile, kernels, tap) for tile in tiles])

    def rows(self, tile: np.ndarray, kernels: Kernels, tap: Tap = no_tap) -> np.ndarray:
        """Compute one tile's rows.  u8 [image_size, image_size, 3] -> float [n_rows, n_embd]"""
        hp = self.hparams
        x = kernels.patch_embd(self.patch_embd, tile, hp.mean, hp.std)  # [n_patch, n_embd]
        if self.patch_bias is not None:
            x = x + self.patch_bias.astype(x.dtype)
        x = tap("inp", -1, x)
        n_patch, first = len(x), 0
        if self.class_embd is not None:
            token, first = self.class_embd[None].astype(x.dtype), 1
            x = np.concatenate([x, token] if self.order == "llama.cpp" else [token, x])
        x = x + self.position_embd.astype(x.dtype, copy=False)
        if self.pre_ln:
            x = tap("pre_ln", -1, self.pre_ln(x, hp.norm_eps, kernels))
        for il in range(hp.n_layer):
            x = tap("ffn_inp", il, x + self.attend(il, x, kernels, tap))
            x = tap("layer_out", il, x + self.feed_forward(il, x, kernels, tap))
        if self.post_ln:
            x = self.post_ln(x, hp.norm_eps, kernels)
        return tap("projected", -1, self.projector(x[first : first + n_patch], hp.norm_eps, kernels))

    def attend(self, il: int, x: np.ndarray, kernels: Kernels, tap: Tap) -> np.ndarray:
        """Return what attention adds to `x` in layer `il`.  x float [n_pos, n_embd] -> as x"""
        hp, blk = self.hparams, self.blk[il]
        h = tap("layer_inp_normed", il, blk.ln1(x, hp.norm_eps, kernels))
        q, k, v = (
            tap(name, il, linear(h, kernels).reshape(len(h), hp.n_head, -1))
            for name, linear in (("Qcur", blk.attn_q), ("Kcur", blk.attn_k), ("Vcur", blk.attn_v))
        )
        rule = Attention((hp.n_embd // hp.n_head) ** -0.5, causal=False)
        out = kernels.attention(q, k, v, 0, rule, lambda name, value: tap(name, il, value))
        return tap("attn_out", il, blk.attn_out(out, kernels))

    def feed_forward(self, il: int, x: np.ndarray, kernels: Kernels, tap: Tap) -> np.ndarray:
        """Return what the feed-forward block adds to `x` in layer `il`.  x float [n_pos, n_embd] -> as x"""
        hp, blk = self.hparams, self.blk[il]
        h = tap("ffn_inp_normed", il, blk.ln2(x, hp.norm_eps, kernels))
        h = tap("ffn_up_b", il, blk.ffn_up(h, kernels))
        h = tap(f"ffn_{hp.ffn_op}", il, vision_activation(h, hp.ffn_op, kernels))
        return tap("ffn_out", il, blk.ffn_down(h, kernels))


def vision_activation(x: np.ndarray, op: str, kernels: Kernels) -> np.ndarray:
    if op == "silu":
        return kernels.silu_mul(x, np.ones_like(x))
    return kernels.gelu(x) if op == "gelu" else kernels.quick_gelu(x)


# --- tiles


def tiles_of(image: np.ndarray, hp: VisionHparams, kernels: Kernels) -> list[np.ndarray]:
    """Split an image into the tower's input squares.  u8 [h, w, 3] -> u8 [image_size, image_size, 3] each

    A model without tiles gets the whole image, centred.  A model with tiles gets the tiles of a larger image row by
    row, then the whole image resized to a square.
    Source: llama.cpp 0c1e57098 mtmd-image.cpp, fixed_size and llava_uhd.
    """
    size = hp.image_size
    if not hp.tiled:
        return [centred(image, size, size, PAD_COLOR, kernels)]
    tiles = []
    h, w, _ = image.shape
    if max(w, h) > size:
        width, height = best_size(w, h, hp.tiled)
        canvas = centred(image, width, height, TILED_PAD_COLOR, kernels)
        tiles = [canvas[y : y + size, x : x + size] for y in range(0, height, size) for x in range(0, width, size)]
    return [*tiles, kernels.resize(image, size, size)]


def centred(image: np.ndarray, width: int, height: int, color: tuple[int, int, int], kernels: Kernels) -> np.ndarray:
    """Scale `image` to fit into the middle of a canvas of `color`.  u8 [h, w, 3] -> u8 [height, width, 3]

    Sizes are rounded up, in float32 as in llama.cpp 0c1e57098 mtmd-image.cpp img_tool::resize with PAD_CEIL.
    """
    h, w, _ = image.shape
    scale = min(np.float32(width) / np.float32(w), np.float32(height) / np.float32(h))
    n_col = min(int(np.ceil(np.float32(w) * scale)), width)
    n_row = min(int(np.ceil(np.float32(h) * scale)), height)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = color
    left, top = (width - n_col) // 2, (height - n_row) // 2
    canvas[top : top + n_row, left : left + n_col] = kernels.resize(image, n_col, n_row)
    return canvas


def best_size(w: int, h: int, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Choose from `sizes` the one that keeps most of the image's pixels; among equals, the one that wastes fewest."""

    def merit(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(np.float32(size[0]) / np.float32(w), np.float32(size[1]) / np.float32(h))
        kept = min(int(np.float32(w) * scale) * int(np.float32(h) * scale), w * h)
        return kept, kept - size[0] * size[1]

    return max(sizes, key=merit)


# --- reading


def load_vision(source: str | os.PathLike[str] | GGUF, n_embd: int | None = None, order: str = "llama.cpp") -> Vision:
    """Load the vision tower and projector of a GGUF file: an "mmproj", or a text model with a tower inside.

    n_embd   width of the text model, if known
    order    place of the class token, "llama.cpp" or "huggingface"

    Raises: BadGGUF, UnsupportedArchitecture, BadOptions; ModelError if the rows do not fit the text model
    """
    if order not in ORDERS:
        raise BadOptions("order", f"order is '{order}', expected one of {', '.join(ORDERS)}")
    gguf = projector_view(source if isinstance(source, GGUF) else GGUF.open(source))
    hp, kind = read_vision_hparams(gguf)
    file, n, n_patch = Tensors(gguf), hp.n_embd, (hp.image_size // hp.patch_size) ** 2
    class_embd = read_vector(file, "v.class_embd", n)
    n_pos = n_patch if class_embd is None else n_patch + 1
    vision = Vision(
        nbytes=sum(tensor.nbytes for name, tensor in gguf.tensors.items() if name.startswith(TOWER)),
        file=gguf.mapped[0],
        hparams=hp,
        patch_embd=file.tensor("v.patch_embd.weight", (n, 3, hp.patch_size, hp.patch_size)),
        patch_bias=read_vector(file, "v.patch_embd.bias", n),
        class_embd=class_embd,
        position_embd=file.tensor("v.position_embd.weight", (n_pos, n)).dequantize(),
        pre_ln=read_layer_norm(file, "v.pre_ln", n) if "v.pre_ln.weight" in gguf.tensor_offsets else None,
        blk=tuple(read_layer(file, hp, f"v.blk.{il}") for il in range(hp.n_layer)),
        post_ln=read_layer_norm(file, "v.post_ln", n) if "v.post_ln.weight" in gguf.tensor_offsets else None,
        projector=PROJECTORS[kind](file, n),
        order=order,
    )
    # not used in llama.cpp either: the last layer, and the row between rows of tiles with which LLaVA 1.6 was trained
    file.check_all_used(ignored=(f"v.blk.{hp.n_layer}.", "v.image_newline", "model.image_newline"))
    if n_patch % vision.projector.reduction:
        raise gguf.bad("clip.vision.image_size", f"{n_patch} patches, expected an even number per side for '{kind}'")
    if n_embd is not None and n_embd != vision.n_embd:
        raise ModelError(f"{gguf.path}: rows are {vision.n_embd} wide, expected the text model's {n_embd}")
    return vision


def read_layer(file: Tensors, hp: VisionHparams, name: str) -> VisionLayer:
    """Read one layer.  Old files swap the names of ffn_up and ffn_down; shapes decide, as in llama.cpp."""
    n, up, down = hp.n_embd, f"{name}.ffn_up", f"{name}.ffn_down"
    if file.tensor(f"{down}.weight", (None, None)).shape[1] == n:
        up, down = down, up
    return VisionLayer(
        ln1=read_layer_norm(file, f"{name}.ln1", n),
        attn_q=read_linear(file, f"{name}.attn_q", n, n),
        attn_k=read_linear(file, f"{name}.attn_k", n, n),
        attn_v=read_linear(file, f"{name}.attn_v", n, n),
        attn_out=read_linear(file, f"{name}.attn_out", n, n),
        ln2=read_layer_norm(file, f"{name}.ln2", n),
        ffn_up=read_linear(file, up, hp.n_ff, n),
        ffn_down=read_linear(file, down, n, hp.n_ff),
    )


def read_vision_hparams(gguf: GGUF) -> tuple[VisionHparams, str]:
    """Read the hyperparameters and the projector's type.  Raises: BadGGUF, UnsupportedArchitecture"""
    kv = gguf.kv

    def refuse(message: str) -> UnsupportedArchitecture:
        return UnsupportedArchitecture(str(kv.get("general.architecture")), f"{gguf.path}: {message}")

    def number(name: str, minimum: float = 1) -> int | float:
        key = f"clip.vision.{name}"
        value = kv.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value < 2**31:
            raise gguf.bad(key, f"key '{key}' is {described(value)}, expected a number from {minimum}")
        return value

    def colors(name: str) -> np.ndarray:
        key = f"clip.vision.{name}"
        value = kv.get(key)
        if not isinstance(value, np.ndarray) or len(value) < 3 or not np.isfinite(value[:3]).all():
            raise gguf.bad(key, f"key '{key}' is {described(value)}, expected numbers for red, green and blue")
        return value[:3].astype(np.float32)

    if gguf.text("general.architecture") != "clip":
        raise refuse(f"architecture is '{kv.get('general.architecture')}', expected 'clip', a vision tower")
    if kv.get("clip.has_vision_encoder") is not True:
        raise refuse("key 'clip.has_vision_encoder' is not true: the file has no vision encoder")
    kind = kv.get("clip.projector_type", kv.get("clip.vision.projector_type"))
    if not isinstance(kind, str) or kind not in PROJECTORS:
        raise refuse(f"unsupported projector type '{kind}'; this build supports {', '.join(PROJECTORS)}")
    if "clip.vision.feature_layer" in kv:
        raise refuse(
            "key 'clip.vision.feature_layer' requires features of several layers, which this build does not support"
        )
    gelu, silu = (kv.get(key) is True for key in ("clip.use_gelu", "clip.use_silu"))
    if gelu and silu:
        raise gguf.bad("clip.use_silu", "both clip.use_gelu and clip.use_silu are true, expected one of them at most")

    n_embd, n_head = int(number("embedding_length")), int(number("attention.head_count"))
    if n_embd % n_head:
        raise gguf.bad("clip.vision.attention.head_count", f"{n_head} heads do not divide a width of {n_embd}")
    image_size, patch_size = int(number("image_size")), int(number("patch_size"))
    if not image_size % patch_size and image_size // patch_size > MAX_PATCHES_PER_SIDE:
        found = f"{image_size} pixels of {patch_size} per patch are {image_size // patch_size} patches per side"
        raise gguf.bad("clip.vision.image_size", f"{found}, expected at most {MAX_PATCHES_PER_SIDE}")
    if image_size % patch_size or image_size**2 > MAX_PIXELS:
        expected = f"a multiple of the patch size, {patch_size}, and at most {MAX_PIXELS} pixels"
        raise gguf.bad("clip.vision.image_size", f"clip.vision.image_size is {image_size}, expected {expected}")
    std = colors("image_std")
    if not (std > 0).all():
        raise gguf.bad("clip.vision.image_std", f"clip.vision.image_std is {std}, expected positive numbers")
    hp = VisionHparams(
        n_layer=int(number("block_count")) - 1,
        n_embd=n_embd,
        n_head=n_head,
        n_ff=int(number("feed_forward_length")),
        image_size=image_size,
        patch_size=patch_size,
        norm_eps=float(number("attention.layer_norm_epsilon", minimum=0)),
        ffn_op="gelu" if gelu else "silu" if silu else "gelu_quick",
        mean=colors("image_mean"),
        std=std,
        tiled=read_tiled(gguf, image_size),
    )
    return hp, kind


def read_tiled(gguf: GGUF, size: int) -> tuple[tuple[int, int], ...]:
    """Read LLaVA 1.6's image_grid_pinpoints, which must be multiples of `size`."""
    key = "clip.vision.image_grid_pinpoints"
    flat = gguf.kv.get(key, ())
    numbers = [int(n) for n in flat if np.isfinite(n)] if isinstance(flat, np.ndarray | tuple) else [0]
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    if len(numbers) % 2 or any(min(w, h) < size or w % size or h % size or w * h > MAX_PIXELS for w, h in pairs):
        raise gguf.bad(key, f"key '{key}' is {described(flat)}, expected pairs of multiples of the image size, {size}")
    return pairs
