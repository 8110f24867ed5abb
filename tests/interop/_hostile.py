"""Files made to hurt whoever opens them: small on the disk, without an end when they are read.

Each writer of ``HOSTILE`` gets a path that is free, and makes a file or a folder there.
"""

import bz2
import collections
import io
import json
import os
import pickle
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import msgpack
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

HUGE = 10**10
CHUNK = bytes(2**24)
STATS = {"bn": {"mean": np.full(3, 0.5, np.float32), "var": np.full(3, 2, np.float32)}}
VARIABLES = {"params": {"bn": {"scale": np.ones(3, np.float32)}}, "batch_stats": STATS}


def npy(array=None, **changes):
    """An array as a member of .npz, with another header if told so."""
    array = np.ones(3, np.float32) if array is None else array
    file = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | changes
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def write_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)


def pack(path, content, *members):
    """An archive whose last member is ``content`` and zeros without an end, as one block repeated.

    Deflate's blocks stand for themselves: after a full flush the same bytes mean the same zeros.
    """
    member, size, times = members
    deflate = zlib.compressobj(9, wbits=-15)
    start = deflate.compress(content) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(CHUNK) + deflate.flush(zlib.Z_FULL_FLUSH)
    packed = start + block * times + deflate.flush()
    name = member.encode()
    fields = (20, 0, 8, 0, 0, 0, len(packed), 2**32 - 1)
    extra = struct.pack("<HHQ", 1, 8, size)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", *fields, len(name), 0) + name + packed
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, *fields, len(name), 12, 0, 0, 0, 0, 0)
    entry += name + extra
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0)
    path.write_bytes(local + entry + end)


def npz_of_zeros(path, member="batch_stats/bn/mean.npy"):
    times = HUGE // len(CHUNK)
    size = times * len(CHUNK)
    header = npy(np.empty(0, np.uint8), shape=(size,))
    pack(path, header, member, size + len(header), times)


def npz_that_claims_less(path):
    header = npy(np.empty(0, np.uint8), shape=(HUGE,))
    pack(path, header, "mean.npy", len(header) + 3, 600)


def npz_without_header(path):
    pack(path, b"no array", "batch_stats/bn/mean.npy", 600 * len(CHUNK), 600)


def npz_of_many(path):
    empty = npy(np.empty(0, np.float32))
    write_zip(path, {f"a{i}.npy": empty for i in range(40000)}, zipfile.ZIP_STORED)


def npz_of_a_long_list(path):
    """A list of members that takes up 200 MB, in holes of the file."""
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2 * 10**8, 100, 0)
    with path.open("wb") as file:
        file.write(b"PK\3\4" + bytes(96))
        file.seek(2 * 10**8 + 100)
        file.write(end)


def safetensors(header, body=b"", length=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + body


def tensor(start=0, end=12, **changes):
    return {"dtype": "F32", "shape": [3], "data_offsets": [start, end]} | changes


def safetensors_of_a_long_header(path):
    """A gigabyte of spaces."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 10**9) + b"{")
        file.seek(10**9 + 8)
        file.write(b"}")


def safetensors_of_a_real_header(path):
    path.write_bytes(safetensors(b'{"' + b"a" * 2**25 + b'":{}}'))


def holes(path, head=b""):
    with path.open("wb") as file:
        file.write(head)
        file.truncate(HUGE)


def nested_msgpack(path):
    path.write_bytes(b"\x81\xa1a" * 10**6 + b"\xc0")


def of_lists(path):
    """Each byte a list of its own."""
    path.write_bytes(b"\x81\xa1a\xdd" + struct.pack(">L", 2**25) + b"\x90" * 2**25)


def lists_in_an_array(path):
    payload = b"\x93\xdd" + struct.pack(">L", 2**24) + b"\x90" * 2**24 + b"\xa1f\xc4\0"
    path.write_bytes(b"\x81\xa1a\xc9" + struct.pack(">LB", len(payload), 1) + payload)


def shared_pickle(path):
    """Lists of ten times the same list, thirty deep."""
    node = [0.5]
    for _ in range(30):
        node = [node] * 10
    write_torch(path, {"bn": node})


def write_torch(path, content):
    import torch

    torch.save(content, path)


def of_one_number(path):
    import torch

    one = torch.ones(1, dtype=torch.bfloat16)
    stats = {"bn.running_mean": one.expand(10**12), "bn.running_var": one.expand(10**12)}
    torch.save(stats, path)


def torch_of_zeros(path):
    pack(path, b"", "model/data.pkl", HUGE, 600)


def orbax(path, tree=None, ocdbt=True):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as checkpointer:
        checkpointer.save(path, VARIABLES if tree is None else tree)
    return path


def orbax_with(name, make):
    """A healthy folder but for one file."""

    def write(path):
        orbax(path)
        (path / name).unlink(missing_ok=True)
        make(path / name)

    return write


def orbax_of_zarr(**changes):
    def write(path):
        orbax(path, ocdbt=False)
        file = path / "batch_stats.bn.mean/.zarray"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return write


def frame(head, size):
    """A frame of Zstandard: ``head`` as it is, then as many zeros, 128 KiB in four bytes."""
    runs = [2**17] * (size // 2**17) + [size % 2**17]
    kinds = [(0, len(head), head), *((1, run, b"\0") for run in runs)]
    blocks = b"".join((n << 3 | k << 1).to_bytes(3, "little") + content for k, n, content in kinds)
    return b"\x28\xb5\x2f\xfd\0\x38" + blocks + b"\1\0\0"


def orbax_of_a_chunk(path, chunk=None, **changes):
    orbax_of_zarr(**changes)(path)
    (path / "batch_stats.bn.mean/0").write_bytes(chunk or frame(b"", HUGE))


def packed_zeros(packer):
    zeros = [packer.compress(CHUNK) for _ in range(60)]
    return b"".join(zeros) + packer.flush()


def chunk_in_a_database(path):
    orbax(path)
    base = {"driver": "ocdbt", "base": f"file://{path}"}
    tensorstore.KvStore.open(base).result()["batch_stats.bn.mean/0"] = frame(b"", HUGE)


def crc32c(content):
    table, crc = [], 2**32 - 1
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
        table.append(value)
    for byte in content:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 2**32 - 1


def manifest(files=HUGE):
    """A manifest of OCDBT whose table of files, all without a name, has three bytes for each."""
    config = bytes(17) + b"\x64\x80\x80\x40\4\1" + bytes(4)
    number = bytes(files >> place & 127 | 128 for place in (0, 7, 14, 21)) + bytes([files >> 28])
    body = frame(config + number, 3 * files)
    whole = b"\x0c\xdb\x3a\x2a" + struct.pack("<Q", len(body) + 18) + b"\0\1" + body
    return whole + struct.pack("<L", crc32c(whole))


def nested_json(path):
    path.write_text('{"a":' * 10**5 + "1" + "}" * 10**5)


def link_to_zeros(path):
    path.symlink_to("/dev/zero")


def listener(path):
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def folder_with(name, make):
    def write(path):
        path.mkdir()
        make(path / name)

    return write


def deep_folder(path):
    here = os.getcwd()
    path.mkdir()
    os.chdir(path)
    for _ in range(400):
        os.mkdir("1")
        os.chdir("1")
    os.chdir(here)


def save(tree):
    def write(path):
        with path.open("wb") as file:
            np.savez(file, **tree)

    return write


def content(make):
    return lambda path: path.write_bytes(make())


def msgpack_of(tree):
    from flax import serialization

    return content(lambda: serialization.msgpack_serialize(tree))


ONE = np.ones(3, np.float32)
TORCH = {"torch of zeros", "torch of shared lists", "torch of one number"}
HOSTILE = {
    "npz of zeros": npz_of_zeros,
    "npz that claims less": npz_that_claims_less,
    "npz without a header": npz_without_header,
    "npz of many arrays": npz_of_many,
    "npz of a long list": npz_of_a_long_list,
    "npz of a false shape": lambda p: write_zip(p, {"a.npy": npy(shape=(HUGE,))}),
    "npz of a shape too small": lambda p: write_zip(p, {"a.npy": npy(shape=(2,))}),
    "npz of a negative shape": lambda p: write_zip(p, {"a.npy": npy(shape=(-1, -3))}),
    "npz of objects": save({"a": np.array([{}])}),
    "npz of a long dtype": lambda p: write_zip(p, {"a.npy": npy(descr="V" + "9" * 30)}),
    "zips in a zip": lambda p: write_zip(p, {"a.zip": b"PK\3\4", "b.npz": b"PK\3\4"}),
    "zip of names": lambda p: write_zip(p, {"\x1b[2J\x1b]0;owned\a": b"", "b": b""}),
    "safetensors of 2**60": content(lambda: safetensors({}, length=2**60)),
    "safetensors of 2**31": content(lambda: safetensors({}, length=2**31)),
    "safetensors of a gigabyte": safetensors_of_a_long_header,
    "safetensors of a long name": safetensors_of_a_real_header,
    "safetensors that overlap": content(
        lambda: safetensors({"a": tensor(), "b": tensor(4, 16)}, bytes(16))
    ),
    "safetensors out of range": content(lambda: safetensors({"a": tensor(0, 2**62)}, bytes(12))),
    "safetensors of a false shape": content(
        lambda: safetensors({"a": tensor(shape=[2**40])}, bytes(12))
    ),
    "safetensors of nested JSON": content(lambda: safetensors(b'{"a":' * 10**5)),
    "safetensors of deep names": content(
        lambda: safetensors({"a/" * 4000 + "mean": tensor()}, bytes(12))
    ),
    "msgpack of 2**31": content(lambda: b"\x81\xa1a\xdd\x80\0\0\0"),
    "msgpack of 2**31 bytes": content(lambda: b"\x81\xa1a\xc6\x80\0\0\0"),
    "msgpack 10**6 deep": nested_msgpack,
    "msgpack of lists": of_lists,
    "msgpack of lists in an array": lists_in_an_array,
    "msgpack of another type": content(lambda: msgpack.packb({"a": msgpack.ExtType(99, b"x")})),
    "msgpack of an empty type": content(lambda: msgpack.packb({"a": msgpack.ExtType(1, b"")})),
    "msgpack of objects": content(
        lambda: msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[1], "O", bytes(8)]))})
    ),
    "holes": lambda p: holes(p, b"PK\3\4"),
    "holes of msgpack": lambda p: holes(p, b"\x81\xa1a"),
    "a pipe": os.mkfifo,
    "a link to a device": link_to_zeros,
    "a socket": listener,
    "a link to itself": lambda p: p.symlink_to(p),
    "orbax of holes": orbax_with("_METADATA", holes),
    "orbax of a device": orbax_with("_METADATA", link_to_zeros),
    "orbax of a pipe": orbax_with("_METADATA", os.mkfifo),
    "orbax of a link to much": orbax_with(
        "_METADATA", lambda p: (p.with_name("d") / "much").write_bytes(b"[" * 2**24)
        and p.symlink_to("d/much")
    ),
    "orbax of nested JSON": orbax_with("_METADATA", nested_json),
    "orbax of a link to itself": orbax_with("_METADATA", lambda p: p.symlink_to(p)),
    "orbax with a pipe inside": orbax_with("d/pipe", os.mkfifo),
    "orbax of another manifest": orbax_with("manifest.ocdbt", link_to_zeros),
    "orbax of a false shape": orbax_of_zarr(shape=[HUGE]),
    "orbax of large chunks": orbax_of_zarr(chunks=[HUGE]),
    "orbax of both": orbax_of_zarr(shape=[HUGE], chunks=[HUGE]),
    "orbax of real zeros": lambda p: orbax_of_a_chunk(p, shape=[HUGE // 4], chunks=[HUGE // 4]),
    "orbax of a chunk too long": orbax_of_a_chunk,
    "orbax of a chunk of gzip": lambda p: orbax_of_a_chunk(
        p, packed_zeros(zlib.compressobj(9, wbits=31)), compressor={"id": "gzip", "level": 9}
    ),
    "orbax of a chunk of bz2": lambda p: orbax_of_a_chunk(
        p, packed_zeros(bz2.BZ2Compressor()), compressor={"id": "bz2", "level": 9}
    ),
    "orbax of a chunk in a database": chunk_in_a_database,
    "orbax of a manifest without an end": orbax_with(
        "manifest.ocdbt", lambda p: p.write_bytes(manifest())
    ),
    "folder of a pipe": folder_with("checkpoint_1", os.mkfifo),
    "folder of itself": folder_with("100", lambda p: p.symlink_to(".")),
    "folder in folders": deep_folder,
    "torch of zeros": torch_of_zeros,
    "torch of shared lists": shared_pickle,
    "torch of one number": of_one_number,
    "torch of empty lists": lambda p: write_zip(
        p, {"model/data.pkl": b"\x80\x02" + b"]" * 2**24 + b".", "model/version": b"3"}
    ),
    "pickle of empty lists": content(lambda: b"\x80\x02" + b"]" * 2**24 + b"."),
    "pickle that is cut": content(lambda: pickle.dumps(collections.Counter("abc"))[:-3]),
    # Of legal kinds, with trees that no model has.
    "keys in one another": save({"a": ONE, "a/b": ONE}),
    "keys in one another beside": save({"params/bn": ONE, "params/bn/scale": ONE}),
    "statistics in statistics": save(
        {"bn/running_mean": ONE, "bn/running_var": ONE, "bn/running_mean/x": ONE}
    ),
    "statistics that are mappings": msgpack_of({"batch_stats": {"bn": {"mean": {"a": ONE}}}}),
    "statistics that are mappings of statistics": msgpack_of(
        {"batch_stats": {"bn": {"mean": {"mean": ONE, "var": {"x": ONE}}, "var": {"mean": ONE}}}}
    ),
    "statistics that are lists": msgpack_of(
        {"batch_stats": {"bn": {"mean": {"0": ONE}, "var": {"0": ONE}}}}
    ),
    "parameters that are an array": msgpack_of({"params": ONE, "batch_stats": {"bn": ONE}}),
    "no names at all": save({"": ONE, "/": ONE}),
    "names that command": msgpack_of({"batch_stats": {"\x1b[31m\r\nok\x9b": {"mean": ONE}}}),
    "statistics of text": save({"bn/mean": np.array(["a"]), "bn/var": np.array(["b"])}),
    "statistics of other shapes": save({"bn/mean": ONE, "bn/var": np.ones((2, 2))}),
}  # fmt: skip


def path_of(name: str, folder: Path) -> Path:
    path = folder / "checkpoint"
    HOSTILE[name](path)
    return path
