# SPDX-License-Identifier: Apache-2.0
"""Drives attend: results against attention written out here, bad input, and no partial output."""
import array
import ast
import itertools
import math
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile

program = pathlib.Path(os.environ["MASKRING_BUILD"], "examples", "attend")
random.seed(7)


def fail(message):
    sys.exit(message)


def write(path, shape, values, kind="f4", version=1, order="<", fortran=False, cut=0, more=b""):
    """A .npy file; cut and more spoil its end."""
    tuple_text = "(" + "".join(f"{n}, " for n in shape) + ")"
    header = f"{{'descr': '{order}{kind}', 'fortran_order': {fortran}, 'shape': {tuple_text}, }}"
    length = {1: "<H", 2: "<I"}[version]
    start = 8 + struct.calcsize(length)
    header += " " * (-(start + len(header) + 1) % 64) + "\n"
    code = {"f4": "f", "f2": "e", "f8": "d", "i4": "i", "i8": "q"}[kind]
    data = struct.pack(f"{order}{len(values)}{code}", *values)
    content = b"\x93NUMPY" + bytes([version, 0]) + struct.pack(length, len(header)) + header.encode() + data
    pathlib.Path(path).write_bytes(content[:len(content) - cut] + more)


def read(path):
    content = pathlib.Path(path).read_bytes()
    if content[:8] != b"\x93NUMPY\x01\x00":
        fail(f"{path} is no .npy file of version 1")
    length, = struct.unpack("<H", content[8:10])
    if (10 + length) % 64:
        fail(f"{path}: the header is not aligned")
    header = ast.literal_eval(content[10:10 + length].decode())
    code = {"<f4": "f", "<f2": "e"}[header["descr"]]
    data = content[10 + length:]
    return header["shape"], struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)


def attend(*words, status=0):
    run = subprocess.run([program, *map(str, words)], text=True, capture_output=True, timeout=120)
    if run.returncode != status:
        fail(f"attend {' '.join(map(str, words))}: status {run.returncode}, expected {status}\n"
             f"{run.stdout}{run.stderr}")
    if status == 0 and run.stderr:
        fail(f"attend wrote to its error stream, which is no terminal: {run.stderr}")
    return run.stdout + run.stderr


class Problem:
    """Tensors of one problem, and its results by the definition of attention."""

    def __init__(self, batch, heads, kv_heads, q_len, kv_len, dim, v_dim):
        self.sizes = batch, heads, kv_heads, q_len, kv_len, dim, v_dim
        self.shapes = {"q": (batch, heads, q_len, dim), "k": (batch, kv_heads, kv_len, dim),
                       "v": (batch, kv_heads, kv_len, v_dim), "grad-out": (batch, heads, q_len, v_dim)}
        # Quarters are exact in float16 too.
        self.data = {name: [random.randint(-8, 8) / 4 for _ in range(math.prod(shape))]
                     for name, shape in self.shapes.items()}

    def row(self, name, b, h, i):
        _, heads, length, dim = self.shapes[name]
        start = ((b * heads + h) * length + i) * dim
        return self.data[name][start:start + dim]

    def results(self, mask, scale=None, change=lambda s, b, h, q, kv: (s, 1.0)):
        """`change` gives the new score and its slope; a mask may also look at b and h."""
        batch, heads, kv_heads, q_len, kv_len, dim, v_dim = self.sizes
        scale = scale or 1 / math.sqrt(dim)
        out, lse = [], []
        dq = [0.0] * math.prod(self.shapes["q"])
        dk = [0.0] * math.prod(self.shapes["k"])
        dv = [0.0] * math.prod(self.shapes["v"])
        for b, h, i in itertools.product(range(batch), range(heads), range(q_len)):
            g = h // (heads // kv_heads)
            q, dout = self.row("q", b, h, i), self.row("grad-out", b, h, i)
            seen = [j for j in range(kv_len)
                    if (mask(i, j) if mask.__code__.co_argcount == 2 else mask(b, h, i, j))]
            changed = [change(scale * sum(map(float.__mul__, q, self.row("k", b, g, j))), b, h, i, j)
                       for j in seen]
            scores = [s for s, _ in changed]
            top = max(scores, default=0)
            total = sum(math.exp(s - top) for s in scores)
            lse.append(top + math.log(total) if seen else -math.inf)
            p = [math.exp(s - top) / total for s in scores]
            o = [sum(w * self.row("v", b, g, j)[d] for w, j in zip(p, seen)) for d in range(v_dim)]
            out += o
            delta = sum(map(float.__mul__, dout, o))
            for w, j, (_, slope) in zip(p, seen, changed):
                ds = w * (sum(map(float.__mul__, dout, self.row("v", b, g, j))) - delta) * slope * scale
                at_q, at_k = ((b * heads + h) * q_len + i) * dim, ((b * kv_heads + g) * kv_len + j) * dim
                at_v = ((b * kv_heads + g) * kv_len + j) * v_dim
                for d, k in enumerate(self.row("k", b, g, j)):
                    dq[at_q + d] += ds * k
                    dk[at_k + d] += ds * q[d]
                for d in range(v_dim):
                    dv[at_v + d] += w * dout[d]
        return {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}


folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)


def expect(problem, expected, tolerance, *words, kind="f4"):
    for name, shape in problem.shapes.items():
        write(f"{name}.npy", shape, problem.data[name], kind, version=random.choice((1, 2)))
    given = itertools.chain.from_iterable((f"--{name}", f"{name}.npy") for name in problem.shapes)
    written = itertools.chain.from_iterable((f"--{name}", f"{name}-result.npy") for name in expected)
    attend(*given, *written, *words)
    batch, heads, _, q_len, *_ = problem.sizes
    shapes = {"out": problem.shapes["grad-out"], "lse": (batch, heads, q_len), "dq": problem.shapes["q"],
              "dk": problem.shapes["k"], "dv": problem.shapes["v"]}
    for name, values in expected.items():
        shape, got = read(f"{name}-result.npy")
        if shape != shapes[name]:
            fail(f"{words}: {name} has shape {shape}, expected {shapes[name]}")
        worst = max((0 if x == y else abs(x - y) for x, y in zip(got, values)), default=0)
        if not worst <= tolerance:
            fail(f"{words}: {name} differs by {worst}")


# Results.

lengths = [5, 0, 9, 3]
write("lengths.npy", (4,), lengths, "i4")
write("lengths8.npy", (4,), lengths, "i8", version=2)
document = [d for d, n in enumerate(lengths) for _ in range(n)]
masks = {
    "full": lambda q, kv: True,
    "causal": lambda q, kv: q >= kv,
    "sliding_window:4": lambda q, kv: 0 <= q - kv <= 4,
    "attention_sink:3:2": lambda q, kv: q >= kv and (q - kv <= 3 or kv < 2),
    "dilated_window:6:2": lambda q, kv: abs(q - kv) <= 6 and (q - kv) % 2 == 0,
    "prefix_lm:6": lambda q, kv: kv < 6 or q >= kv,
    "document": lambda q, kv: document[q] == document[kv],
    "document_causal": lambda q, kv: document[q] == document[kv] and q >= kv,
    "causal & !sliding_window:2 | document": lambda q, kv: q - kv > 2 or document[q] == document[kv],
}
problem = Problem(2, 4, 2, 17, 17, 3, 2)
ways = [[]] + [["--ranks", str(n), "--layout", layout, "--method", method]
               for n in (2, 3, 20) for layout in ("contiguous", "zigzag", "striped")
               for method in ("ring", "all-gather")]
for i, (name, mask) in enumerate(masks.items()):
    expected = problem.results(mask)
    for way in [[]] + ways[1 + i::9]:
        expect(problem, expected, 5e-6, "--mask", name, "--doc-lengths", "lengths.npy", *way)
expect(problem, problem.results(masks["causal"], 0.25), 5e-6, "--mask=causal", "--scale", "0.25")
expect(problem, problem.results(masks["document"]), 1e-2, "--mask", "document", "--doc-lengths",
       "lengths8.npy", "--ranks=2", kind="f2")
other = Problem(1, 2, 1, 5, 23, 4, 4)
expect(other, other.results(masks["sliding_window:4"]), 5e-6, "--mask", "sliding_window:4", "--ranks", "3")
empty = Problem(1, 2, 2, 0, 3, 4, 4)
expect(empty, empty.results(masks["full"]), 0, "--ranks", "2")
for part in ("dq", "dk", "dv"):
    expect(problem, {part: problem.results(masks["causal"])[part], "out": problem.results(masks["causal"])["out"]},
           5e-6, "--mask", "causal")

# Score modifiers, and masks that tell batch entries apart, beside more heads than are done at a time.
crowd = Problem(2, 40, 40, 9, 9, 2, 2)
alibi = lambda s, b, h, q, kv: (s + (kv - q) * 2 ** (-8 * (h + 1) / 40), 1.0)
softcap = lambda s, b, h, q, kv: (2 * math.tanh(s / 2), 1 - math.tanh(s / 2) ** 2)
padding = lambda b, h, q, kv: kv < (8, 6)[b]
for way in ([], ["--ranks", "2", "--layout", "zigzag"]):
    expect(crowd, crowd.results(masks["causal"], change=alibi), 5e-6, "--mask", "causal", "--score", "alibi", *way)
    expect(crowd, crowd.results(padding), 5e-6, "--mask", "key_padding:8", *way)
expect(problem, problem.results(masks["full"], change=softcap), 5e-6, "--score", "softcap:2")

# Every mask and score modifier by name, the sequence whole and split.

help_text = attend("--help")
parts = help_text.split("A SCORE")
named = [re.findall(r"^  ([a-z0-9_]+)(?::|\[| )", part.split("\n", 1)[1], re.M) for part in parts]
every_mask, every_score = named[0][named[0].index("full"):], named[1][:named[1].index("contiguous")]
if len(every_mask) < 25 or len(every_score) < 10:
    fail(f"--help lists the masks {every_mask} and the score modifiers {every_score}")
needed = {"sliding_window": ":4", "attention_sink": ":3:2", "dilated_window": ":6:2", "prefix_lm": ":6"}
wide = Problem(1, 2, 1, 64, 64, 2, 2)
for name, values in wide.data.items():
    write(f"{name}.npy", wide.shapes[name], values)
write("sixty-four.npy", (3,), [20, 30, 14], "i4")
for i, words in enumerate([["--mask", m + needed.get(m, "")] for m in every_mask]
                          + [["--score", s] for s in every_score]):
    given = ["--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--doc-lengths", "sixty-four.npy", *words]
    layout = ("contiguous", "zigzag", "striped")[i % 3]
    attend(*given, "--out", "whole-result.npy")
    attend(*given, "--out", "split-result.npy", "--ranks", "3", "--layout", layout)
    whole, split = read("whole-result.npy")[1], read("split-result.npy")[1]
    if not all(abs(a - b) <= 5e-6 for a, b in zip(whole, split)):
        fail(f"{words}: three ranks and one differ")

# Bad input: status 2, one line that says what is wrong, nothing written.

q, k = problem.shapes["q"], problem.shapes["k"]
for name, shape in problem.shapes.items():
    write(f"{name}.npy", shape, problem.data[name])
write("truncated.npy", q, problem.data["q"], cut=4)
write("long.npy", q, problem.data["q"], more=b"ab")
write("big.npy", q, problem.data["q"], order=">")
write("fortran.npy", q, problem.data["q"], fortran=True)
write("double.npy", q, problem.data["q"], "f8")
write("half.npy", problem.shapes["v"], problem.data["v"], "f2")
write("flat.npy", (len(problem.data["q"]),), problem.data["q"])
write("heads.npy", (2, 3, 17, 3), [0.0] * 306)
write("short.npy", (3,), [5, 9, 2], "i4")
write("negative.npy", (2,), [18, -1], "i8")
write("floats.npy", (2,), [8, 9], "f4")
write("square.npy", (2, 2), [8, 9, 1, 1], "i4")
write("zero.npy", (2, 4, 17, 0), [])
pathlib.Path("text.npy").write_text("no array at all")
pathlib.Path("header.npy").write_bytes(pathlib.Path("q.npy").read_bytes()[:40])
pathlib.Path("version.npy").write_bytes(b"\x93NUMPY\x03\x00" + pathlib.Path("q.npy").read_bytes()[8:])
pathlib.Path("dict.npy").write_bytes(pathlib.Path("q.npy").read_bytes().replace(b"'shape'", b"'shame'"))
write("huge.npy", (1 << 40, 1 << 40, 4, 4), [])
os.mkdir("folder")

tensors = {"--q": "q.npy", "--k": "k.npy", "--v": "v.npy", "--out": "result.npy"}
table = [
    ({"--q": None}, "--q is missing"),
    ({"--out": None}, "--out is missing"),
    ({"--q": "nowhere.npy"}, "--q: nowhere.npy cannot be opened"),
    ({"--q": "truncated.npy"}, "--q: truncated.npy is truncated: it holds 1628 bytes of data, expected 1632"),
    ({"--q": "header.npy"}, "header.npy is truncated"),
    ({"--q": "long.npy"}, "long.npy is too long"),
    ({"--q": "huge.npy"}, "huge.npy is truncated"),
    ({"--q": "big.npy"}, "big.npy is big-endian ('>f4'), expected little-endian"),
    ({"--q": "fortran.npy"}, "fortran.npy is in Fortran order, expected C order"),
    ({"--q": "double.npy"}, "double.npy is of type '<f8', expected '<f4' or '<f2'"),
    ({"--q": "text.npy"}, "text.npy is no .npy file"),
    ({"--q": "version.npy"}, "version 3, expected 1 or 2"),
    ({"--q": "dict.npy"}, "dict.npy has a .npy header that cannot be read"),
    ({"--q": "flat.npy"}, "expected 4 extents [batch, heads, sequence, dim]"),
    ({"--v": "half.npy"}, "the tensors are of types '<f4' and '<f2', expected one type"),
    ({"--k": "v.npy"}, "--k has shape [2, 2, 17, 2], expected [2, 2, 17, 3] (batch and dim as q)"),
    ({"--v": "q.npy"}, "--v has shape [2, 4, 17, 3], expected [2, 2, 17, 3] (batch, heads and sequence as k)"),
    ({"--q": "heads.npy"}, "--q has 3 heads, expected a multiple of the 2 heads of --k"),
    ({"--q": "zero.npy"}, "--q has dim 0"),
    ({"--mask": "causl"}, "no mask is called 'causl', expected one of full, causal"),
    ({"--mask": "sliding_window"}, "the width is missing"),
    ({"--mask": "sliding_window:-1"}, "width is -1, expected 0 or more"),
    ({"--mask": "sliding_window:x"}, "width is 'x', expected a number"),
    ({"--mask": "causal:1"}, "causal: 1 arguments, expected at most 0"),
    ({"--mask": "causal &"}, "no mask is called ''"),
    ({"--mask": "document"}, "expects the lengths of the documents, --doc-lengths"),
    ({"--doc-lengths": "short.npy", "--mask": "document"}, "the table covers 16 tokens, expected the sequence's 17"),
    ({"--doc-lengths": "negative.npy"}, "the length of document 1 is -1"),
    ({"--doc-lengths": "floats.npy"}, "floats.npy is of type '<f4', expected '<i4' or '<i8'"),
    ({"--doc-lengths": "square.npy"}, "has shape [2, 2], expected one extent"),
    ({"--scale": "0"}, "--scale is '0', expected a positive number"),
    ({"--scale": "-1"}, "expected a positive number"),
    ({"--scale": "nan"}, "expected a positive number"),
    ({"--scale": "1e999"}, "expected a positive number"),
    ({"--ranks": "0"}, "--ranks is '0', expected a whole number from 1"),
    ({"--ranks": "2x"}, "--ranks is '2x'"),
    ({"--layout": "spiral"}, "--layout is 'spiral', expected one of contiguous, zigzag, striped"),
    ({"--method": "tree"}, "--method is 'tree', expected one of ring, all-gather"),
    ({"--device": "abacus"}, "--device is 'abacus', expected one of cpu"),
    ({"--dq": "dq.npy"}, "--dq, --dk and --dv expect --grad-out"),
    ({"--grad-out": "grad-out.npy"}, "--grad-out expects one of --dq, --dk and --dv"),
    ({"--grad-out": "q.npy", "--dq": "dq.npy"}, "--grad-out has shape [2, 4, 17, 3], expected [2, 4, 17, 2]"),
    ({"--out": "folder"}, "--out: 'folder' cannot be written"),
    ({"--out": "nowhere/out.npy"}, "--out: 'nowhere/out.npy' cannot be written"),
    ({"--out": "/dev/null"}, "--out: '/dev/null' cannot be written"),
    ({"--lse": "result.npy"}, "--lse and --out are the same file"),
    ({"--speed": "9"}, "no option is called --speed"),
]
before = sorted(os.listdir())
before = [name for name in before if not name.endswith("-result.npy")]
for changes, message in table:
    words = [word for option, value in {**tensors, **changes}.items() if value for word in (option, value)]
    said = attend(*words, status=2)
    if message not in said or said.count("\n") != 1 or not said.startswith("attend: "):
        fail(f"attend {' '.join(words)}\nsaid: {said}expected one line with: {message}")
for words, message in [(["--q"], "--q expects a value"), (["q.npy"], "expected --NAME VALUE, not 'q.npy'"),
                       (["--q=a", "--q", "b"], "--q is given twice"), ([], "--q is missing")]:
    if message not in attend(*words, status=2):
        fail(f"attend {' '.join(words)} does not say: {message}")
after = [name for name in sorted(os.listdir()) if not name.endswith("-result.npy")]
if after != before:
    fail(f"bad input left {set(after) - set(before)}")

for word in ["usage: attend", "--grad-out", "sliding_window:W", "zigzag", "Exit status"]:
    if word not in help_text:
        fail(f"--help does not mention {word}")
