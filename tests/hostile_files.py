"""Files that want to do harm, for test_hostile_files.py: bytes, or functions of the path that they would write to."""

import collections
import io
import pickle
import pickletools
import struct

import numpy as np
import torch
from helpers import DATA

from dnnlib import EasyDict
from torch_utils import persistence
from training import networks_stylegan2

GOLDEN = (DATA / "pickles" / "stylegan2.pkl").read_bytes()

# ---------------------------------------------------------------------------------------------------------------------
# Pickles by hand.

NONE, EMPTY_TUPLE, REDUCE, BUILD, MEMOIZE, MARK, TUPLE = b"N", b")", b"R", b"b", b"\x94", b"(", b"t"


def program(*parts, protocol=4):
    return bytes([0x80, protocol]) + b"".join(parts) + b"."


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(module, name):
    """A global by STACK_GLOBAL."""
    return text(module) + text(name) + b"\x93"


def of_line(full_name):
    """A global by GLOBAL, the spelling of protocol 2."""
    module, _, name = full_name.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def call(function, *args):
    return function + MARK + b"".join(args) + TUPLE + REDUCE


def value(obj):
    """The opcodes of a harmless value without shared parts, so that it needs no memo."""
    return pickletools.optimize(pickle.dumps(obj, 2))[2:-1]


def in_G(code):
    """As the network G of a file."""
    return b"}" + text("G") + code + b"s"


class Call:
    """Pickles as a call of that function."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


def storage_bytes(first_pickle=b"", numel=None):
    """As torch stores four numbers within a pickle; optionally with another pickle before, or another number stated."""
    data, = torch.arange(4.0).__reduce_ex__(2)[1][0].__reduce__()[1]
    if numel is not None:
        at = data.rindex(struct.pack("<q", 4))
        data = data[:at] + struct.pack("<q", numel) + data[at + 8:]
    return first_pickle + data


def tensor(data, offset=0, shape=(4,), stride=(1,)):
    return Call(torch._utils._rebuild_tensor_v2, Call(torch.storage._load_from_bytes, data), offset, shape, stride,
                False, collections.OrderedDict())


def torch_zip(obj):
    stream = io.BytesIO()
    torch.save(obj, stream)
    return stream.getvalue()


def dump(obj, protocol=4):
    return pickle.dumps(dict(G=obj), protocol)


def evil(path):
    return call(of_line("posix.system"), text(f"touch {path}"))


# ---------------------------------------------------------------------------------------------------------------------
# Networks that are not sound.

KWARGS = dict(z_dim=8, c_dim=0, w_dim=8, img_resolution=16, img_channels=3, channel_base=128, channel_max=8,
              num_fp16_res=0,
              mapping_kwargs=dict(num_layers=2))


def meta(kwargs=None, **changes):
    """Of a small generator, with other init arguments and other entries."""
    found = networks_stylegan2.Generator(**KWARGS).__reduce_ex__(5)[1][0]
    found["init_kwargs"].update(kwargs or {})
    found.update(changes)
    return found


def network(found, state=None):
    return dump(Call(persistence._reconstruct_persistent_obj, found, state=state), protocol=5)


class _Reader(pickle.Unpickler):
    """Leaves stored networks as calls, which can be changed and written again."""

    def find_class(self, module, name):
        if name == "_reconstruct_persistent_obj":
            return lambda meta: Call(persistence._reconstruct_persistent_obj, meta)
        return super().find_class(module, name)


def released_network(kwargs):
    """The golden file's generator with other init arguments."""
    G = _Reader(io.BytesIO(GOLDEN)).load()["G_ema"]
    G.call[1][0]["state"]["_init_kwargs"].update(kwargs)
    return dump(G)


def with_tensor(name, stored):
    found = meta()
    found["state"]["tensors"][name] = stored
    return network(found)


def without_tensor(name):
    found = meta()
    del found["state"]["tensors"][name]
    return network(found)


def released(old, new):
    """The golden file with other bytes of the same number."""
    assert len(old) == len(new) and old in GOLDEN
    return GOLDEN.replace(old, new)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes of objects.

def nested(opener, closer, depth):
    return program(in_G(opener * depth + closer))


def laughs(pair, levels=40):
    """Each level holds the one before twice: small in memory, endless to walk through."""
    code = text("ha") + MEMOIZE
    for level in range(levels):
        last = b"h" + bytes([level])
        code += pair(last) + MEMOIZE
    return code


def doubled(pair, levels):
    """The same with only the last level on the stack."""
    code = text("ha") + MEMOIZE
    for level in range(levels):
        code += b"0" + pair(b"h" + bytes([level])) + MEMOIZE
    return code


def list_pair(last):
    return b"](" + last + last + b"e"


def tuple_pair(last):
    return last + last + b"\x86"


def repeated_calls(count=100_000):
    """One storage of a megabyte, rebuilt again and again."""
    data = bytes(1 << 20)
    function = of_line("_codecs.encode") + MEMOIZE
    args = text(data.decode()) + MEMOIZE + text("latin1") + b"\x86" + MEMOIZE
    return program(b"](", function, args, REDUCE, (b"h\x00h\x02" + REDUCE) * count, b"e")


def colliding_keys(count=20_000):
    """Whole numbers of one hash: a dict of n takes n * n comparisons."""
    prime = (1 << 61) - 1
    keys = b"".join(b"\x8a\x0a" + (prime * i).to_bytes(10, "little", signed=True) + NONE for i in range(count))
    return program(b"}(" + keys + b"u")


def overlapping_frames(count=1000):
    frames = b"".join(b"\x95" + struct.pack("<Q", 9 * (count - i)) for i in range(count))
    return program(frames + NONE + bytes(10))


SYSTEM = (
    "os.system", "posix.system", "nt.system", "builtins.exec", "builtins.eval", "builtins.compile", "builtins.getattr",
    "builtins.setattr",
    "builtins.__import__", "builtins.open", "builtins.globals", "builtins.type", "builtins.object",
    "builtins.bytearray", "builtins.range",
    "__builtin__.eval", "__builtin__.file", "io.open", "functools.partial", "functools.reduce", "operator.attrgetter",
    "operator.methodcaller",
    "operator.itemgetter", "types.FunctionType", "types.CodeType", "importlib.import_module", "importlib.reload",
    "runpy.run_path", "subprocess.Popen",
    "pty.spawn", "shutil.rmtree", "pathlib.PosixPath", "socket.socket", "ctypes.CDLL", "webbrowser.open",
    "code.interact", "timeit.timeit",
    "cProfile.run", "bdb.Bdb", "pdb.run", "pip.main", "marshal.loads", "pickle.loads", "_pickle.loads",
    "_pickle.Unpickler", "pickle.load", "dill.loads",
    "copyreg._reconstructor", "copyreg.add_extension", "copy_reg._reconstructor", "copyreg.pickle", "codecs.decode",
    "weakref.finalize",
    "torch.load", "torch.serialization.load", "torch.jit.load", "torch.jit._script.load", "torch.hub.load",
    "torch.package.PackageImporter",
    "torch.storage.UntypedStorage", "torch._utils._rebuild_device_tensor_from_numpy",
    "torch.utils.cpp_extension.load_inline", "torch.zeros",
    "torch.nn.modules.linear.Linear", "numpy.load", "numpy.zeros", "numpy.core.multiarray.fromfile",
    "numpy.testing._private.utils.runstring",
    "numpy.memmap", "dnnlib.util.get_obj_by_name", "dnnlib.util.call_func_by_name",
    "dnnlib.util.construct_class_by_name", "dnnlib.util.open_url",
    "dnnlib.util.open_whole", "torch_utils.persistence.save", "torch_utils.persistence.resolve_class",
    "torch_utils.persistence.import_hook",
    "torch_utils.custom_ops.get_plugin", "training.networks_stylegan2.Generator",
    "training.dataset.ImageFolderDataset", "training.training_loop.training_loop",
)
DOTTED = (
    ("torch_utils", "persistence.os.system"), ("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__"),
    ("torch_utils.persistence", "os"),
    ("torch_utils.persistence", "importlib.import_module"), ("dnnlib.util", "EasyDict.__init__"),
    ("dnnlib", "util.os.system"),
    ("collections", "OrderedDict.update"), ("torch_utils.persistence", "decode_tensor.__globals__"),
    ("torch", "storage.__builtins__"), ("", ""), ("os", ""),
    ("numpy", "dtype.type"), ("dnnlib.util\nos", "EasyDict"), ("dnnlib.util ", "EasyDict"), ("x" * 100_000, "y"),
)

RECONSTRUCT = of_line("torch_utils.persistence._reconstruct_persistent_obj")
DECODE, DTYPE = of_line("torch_utils.persistence.decode_tensor"), of_line("numpy.dtype")
NUMPY = "numpy.core.multiarray."
EASY_DICT, LATIN1 = of_line("dnnlib.util.EasyDict"), of_line("_codecs.encode")

PIPE = dict(type="class", version=6, class_name="AugmentPipe", module_src="x = 1",
            state=dict(_parameters={}, _buffers={}, _modules={}, _init_args=(), _init_kwargs={}))


def stored_with(argument):
    """A network with that code for the value of an init argument."""
    entries = dict(class_name=text("training.networks_stylegan2.Generator"), init_args=EMPTY_TUPLE,
                   state=b"}" + text("tensors") + b"}s", init_kwargs=b"}" + text("z_dim") + argument + b"s")
    return program(in_G(call(RECONSTRUCT, b"}" + b"".join(text(key) + code + b"s" for key, code in entries.items()))))


# name: (bytes or function of the path, what the message says)
EXECUTION = {
    "exec with arguments":          (lambda p: program(in_G(call(of_line("builtins.exec"),
                                                                 text(f"open({str(p)!r}, 'w')")))), r"builtins\.exec"),
    "exec, not called":             (lambda p: program(in_G(of_line("builtins.exec"))), r"builtins\.exec"),
    "getattr chain":                (lambda p: program(in_G(call(call(of_line("builtins.getattr"),
                                                                      call(of_line("builtins.__import__"), text("os")),
                                        text("system")), text(f"touch {p}")))), r"builtins\.getattr"),
    "evil beside a sound network":  (lambda p: pickle.dumps(dict(G=networks_stylegan2.Generator(**KWARGS)),
                                                            4)[:-2] + text("x") + evil(p) + b"su.",
                                     r"posix\.system"),
    "evil that is dropped":         (lambda p: program(evil(p) + b"0" + in_G(NONE)), r"posix\.system"),
    "evil after a mark":            (lambda p: program(MARK + evil(p) + b"1" + in_G(NONE)), r"posix\.system"),
    "nested pickle":                (lambda p: program(in_G(call(of_line("_pickle.loads"), value(program(evil(p)))))),
                                     r"_codecs|_pickle\.loads"),
    "evil in storage":              (lambda p: dump(tensor(storage_bytes(program(evil(p))))), r"posix\.system"),
    "evil storage type":            (lambda p: dump(tensor(storage_bytes().replace(b"ctorch\nFloatStorage\n",
                                                                                   b"cposix\nsystem\n"))),
                                     r"posix\.system"),
    "torch zip in storage":         (lambda p: dump(tensor(torch_zip([1, 2]))), "damaged"),
    "storage in storage":           (lambda p: dump(tensor(storage_bytes(pickle.dumps(tensor(storage_bytes()), 2)))),
                                     r"_rebuild_tensor_v2"),
    "INST":                         (lambda p: program(in_G(MARK + text(f"touch {p}") + b"iposix\nsystem\n")), "INST"),
    "OBJ":                          (lambda p: program(in_G(MARK + EASY_DICT + b"o")), "OBJ"),
    "EXT1":                         (lambda p: program(in_G(b"\x82\x01")), "EXT1"),
    "EXT2":                         (lambda p: program(in_G(b"\x83\x01\x00")), "EXT2"),
    "EXT4":                         (lambda p: program(in_G(b"\x84\x01\x00\x00\x00")), "EXT4"),
    "PERSID":                       (lambda p: program(in_G(b"Pstorage\n")), "PERSID"),
    "BINPERSID":                    (lambda p: program(in_G(text("storage") + b"Q")), "storages outside"),
    "NEXT_BUFFER":                  (lambda p: program(in_G(b"\x97"), protocol=5), "NEXT_BUFFER"),
    "READONLY_BUFFER":              (lambda p: program(in_G(NONE + b"\x98"), protocol=5), "READONLY_BUFFER"),
    "text opcodes":                 (lambda p: program(in_G(b"S'a'\n")), "STRING"),
    "name that is no text":         (lambda p: program(in_G(value((1, 2)) + text("system") + b"\x93")),
                                     "expected text"),
    "name made by a call":          (lambda p: program(in_G(call(LATIN1, text("posix"),
                                                                 text("latin1")) + text("system") + b"\x93")),
                                     "expected text"),
    "call of a result":             (lambda p: program(in_G(call(call(EASY_DICT)))), "calls what it has built"),
    "call of a text":               (lambda p: program(in_G(call(text("os.system")))), "calls what it has built"),
    "NEWOBJ of a text":             (lambda p: program(in_G(text("os.system") + EMPTY_TUPLE + b"\x81")),
                                     "calls what it has built"),
    "class name in a meta":         (lambda p: network(meta(class_name="os.system", init_args=(f"touch {p}",))),
                                     r"os\.system"),
    "module name in a meta":        (lambda p: network(meta(class_name="torch_utils.persistence.os")),
                                     r"persistence\.os"),
    "function in a meta":           (lambda p: network(meta(class_name="torch_utils.persistence.save")),
                                     r"persistence\.save"),
    "train.py in a meta":           (lambda p: network(meta(class_name="training.training_loop.training_loop")),
                                     r"training_loop"),
    "antigravity in a meta":        (lambda p: network(meta(class_name="antigravity.this.that")), r"antigravity"),
    "path in a meta":               (lambda p: network(meta(class_name="training.../../etc/passwd")), "passwd"),
    "source with side effects":     (lambda p: network(meta(class_name="Thing", module_src=f"open({str(p)!r}, 'w')")),
                                     "Thing"),
    "source and our class name":    (lambda p: network(meta(module_src=f"open({str(p)!r}, 'w')")),
                                     "training.networks_stylegan2.Generator"),
    "source and their class name":  (lambda p: network(meta(class_name="Generator",
                                                            module_src=f"open({str(p)!r}, 'w')", version=7)),
                                     "no torch module"),
    "source as a call":             (lambda p: dump(Call(persistence._reconstruct_persistent_obj,
                                                         dict(type="class", class_name="Generator", state={},
                                        module_src=Call(exec, f"open({str(p)!r}, 'w')")))), r"builtins\.exec"),
}
STATE = {
    "state of a function":          (program(in_G(RECONSTRUCT + value({"__globals__": 1}) + BUILD)), "tries to change"),
    "slots of a class":             (program(in_G(EASY_DICT + value((None, {"get": 1})) + BUILD)), "tries to change"),
    "state of an EasyDict":         (program(in_G(call(EASY_DICT) + value({"get": 1}) + BUILD)), "tries to change"),
    "state of an OrderedDict":      (program(in_G(call(of_line("collections.OrderedDict")) + value({"items": 1}) + BUILD)),
                                     "tries to change"),
    "state of a dict":              (program(in_G(b"}" + value({"items": 1}) + BUILD)), "tries to change"),
    "state of a network":           (network(meta(), state={"forward": 1}), "tries to change"),
    "class of a network":           (network(meta(), state={"__class__": 1}), "tries to change"),
    "state of a tensor":            (dump(Call(persistence.decode_tensor, bytes(4), "float32", (1,),
                                               state=(1, 2, 3, 4))), "tries to change"),
    "state of a parameter":         (dump(Call(torch._utils._rebuild_parameter, torch.zeros(2), True, None,
                                               state={"data": 1})), "tries to change"),
    "__setstate__ in an EasyDict":  (program(in_G(call(EASY_DICT) + text("__setstate__")
                                        + of_line("torch.storage._load_from_bytes") + b"s"
                                        + value({"x": 1}) + BUILD)), "tries to change"),
    "extending a tensor":           (program(in_G(call(DECODE, b"C\x00", text("uint8"),
                                                       value((0,))) + MARK + b"K\x01e")), "Tensor, expected a list"),
    "adding to an EasyDict":        (program(in_G(call(EASY_DICT) + MARK + b"K\x01\x90")), "EasyDict, expected a set"),
    "items of a tensor":            (program(in_G(call(DECODE, b"C\x00", text("uint8"),
                                                       value((0,))) + text("a") + NONE + b"s")),
                                     "Tensor, expected a dict"),
    "items of a function":          (program(in_G(EASY_DICT + text("a") + NONE + b"s")), "EasyDict', expected a dict"),
}
BOUNDS = {
    "memo number":                  (b"\x80\x04Nr\x00\x00\x00\x80.", "NoneType, not a dict"),
    "memo number, in steps":        (program(b"".join(NONE + b"r" + struct.pack("<I", 4 ** i) + b"0"
                                                      for i in range(16)) + NONE), "NoneType, not a dict"),
    "memo that nobody filled":      (program(in_G(b"h\x07")), "damaged"),
    "bytes beyond the end":         (program(in_G(b"\x8e" + struct.pack("<Q", 1 << 62))), "damaged"),
    "bytearray beyond the end":     (program(in_G(b"\x96" + struct.pack("<Q", 1 << 40)), protocol=5), "damaged"),
    "text beyond the end":          (program(in_G(b"\x8d" + struct.pack("<Q", 1 << 40))), "damaged"),
    "short text beyond the end":    (b"\x80\x04\x8c\xffabc", "damaged"),
    "negative length":              (program(in_G(b"X" + struct.pack("<i", -1))), "damaged"),
    "frame beyond the end":         (program(b"\x95" + struct.pack("<Q", 1 << 60) + in_G(NONE)), "damaged"),
    "overlapping frames":           (overlapping_frames(), "damaged"),
    "long number":                  (program(in_G(b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20))),
                                     "LONG4"),
    "negative size of a number":    (program(in_G(b"\x8b" + struct.pack("<i", -5))), "LONG4"),
    "decimal number":               (program(in_G(b"I" + b"9" * 300_000 + b"\n")), "damaged|whole number"),
    "LONG in decimal":              (program(in_G(b"L" + b"9" * 180 + b"L\n")), "LONG"),
    "endless line":                 (program(b"c" + b"a" * 1_000_000), "damaged"),
    "unknown opcode":               (program(in_G(b"\xff")), "damaged"),
    "DUP":                          (program(in_G(NONE + b"2")), "DUP"),
    "protocol 200 inside":          (program(b"\x80\xc8" + NONE), "NoneType, not a dict"),
    "stack underflow":              (program(b"sssss"), "damaged"),
    "no mark":                      (program(b"Nt"), "damaged"),
    "no STOP":                      (b"\x80\x04" + NONE * 100, "damaged"),
    "nested tuples":                (nested(b"", NONE + b"\x85" * 100_000, 1), "levels deep"),
    "nested tuple as key":          (program(b"}" + NONE + b"\x85" * 100_000 + NONE + b"s"), "levels deep"),
    "nested lists":                 (nested(b"](", NONE + b"e" * 100_000, 100_000), "levels deep"),
    "nested dicts":                 (nested(b"}K\x01", NONE + b"s" * 100_000, 100_000), "levels deep"),
    "nested calls":                 (nested(of_line("torch.Size"), EMPTY_TUPLE + (b"\x85" + REDUCE) * 50_000, 50_000),
                                     "levels deep"),
    "nested outside in":            (program(in_G(b"]" + MEMOIZE + b"".join(
                                        b"]" + MEMOIZE + b"h" + bytes([i]) + b"h" + bytes([i + 1]) + b"a0"
                                        for i in range(0, 200)))), "damaged|in use"),
    "list in itself":               (program(in_G(b"]" + MEMOIZE + b"h\x00a")), "contains itself"),
    "dict in itself":               (program(b"}" + MEMOIZE + text("G") + b"h\x00s"), "contains itself"),
    "laughing lists":               (program(in_G(laughs(list_pair))), "without end"),
    "laughing tuples":              (program(in_G(laughs(tuple_pair))), "without end"),
    "key of 60 levels":             (program(b"}" + doubled(tuple_pair, 60) + NONE + b"s"), "without end"),
    "set of 60 levels":             (program(in_G(call(of_line("builtins.set"),
                                                       b"](" + doubled(tuple_pair, 60) + b"e"))), "without end"),
    "deeply nested key":            (program(b"}" + NONE + b"\x85" * 900_000 + NONE + b"s"), "levels deep"),
    "init argument of 40 levels":   (stored_with(doubled(list_pair, 40)), "without end"),
    "init argument, 7 levels of 100": (stored_with(doubled(lambda last: b"](" + last * 100 + b"e", 7)), "without end"),
    "storage key of 60 levels":     (dump(tensor(storage_bytes(program(b"}" + doubled(tuple_pair, 60) + NONE + b"s",
                                                                       protocol=2)))),
                                     "without end"),
    "laughing key":                 (program(laughs(tuple_pair, 16) + b"}h\x10" + NONE + b"s"),
                                     "a key that is neither"),
    "laughing init argument":       (program(in_G(call(RECONSTRUCT,
                                                       b"}" + text("class_name") + laughs(list_pair) + b"s"))),
                                     "without end"),
    "one storage, many times":      (repeated_calls(), "without end"),
    "colliding keys":               (colliding_keys(), "a key that is neither"),
    "colliding members":            (program(in_G(call(of_line("builtins.set"),
                                                       value([((1 << 61) - 1) * i for i in range(9000)])))),
                                     "a set in it is malformed"),
    "half a million sets":          (program(in_G(b"](" + b"\x8f\x94" * 450_000 + b"e")),
                                     "is a list, not a network|without end"),
    "two million opcodes":          (program(b"]" + b"\x8f0" * 1_000_000), "opcodes"),
    "numpy array of 2^60":          (program(in_G(call(of_line(NUMPY + "_reconstruct"), of_line("numpy.ndarray"),
                                                       value((1 << 60,)), value("b"))
                                        + MARK + b"K\x01" + value((1 << 60,)) + call(DTYPE, text("f8"),
                                                                                     b"\x89\x88") + b"\x89" + b"C\x00" + TUPLE + BUILD)),
                                     "numpy array in it is malformed"),
    "numpy objects":                (dump(np.array([None], dtype=object)), "numpy array in it is malformed"),
    "numpy text":                   (dump(np.array(["abc"])), "numpy array in it is malformed|numpy dtype"),
    "numpy records":                (dump(np.zeros(2, dtype=[("a", "f4")])), "numpy"),
    "numpy type of 2^30 bytes":     (program(in_G(call(of_line(NUMPY + "scalar"),
                                                       call(DTYPE, text("V1073741824"), b"\x89\x88"), b"C\x00"))),
                                     "numpy dtype"),
    "storage of 2^50":              (dump(tensor(storage_bytes(numel=1 << 50))), "does not fit together"),
    "storage of -1":                (dump(tensor(storage_bytes(numel=-1))), "does not fit together"),
    "stride 0":                     (dump(tensor(storage_bytes(), 0, (1 << 40,), (0,))), "a tensor in it is malformed"),
    "stride 2^40":                  (dump(tensor(storage_bytes(), 0, (2,), (1 << 40,))), "a tensor in it is malformed"),
    "offset 2^62":                  (dump(tensor(storage_bytes(), 1 << 62, (0,), (1,))), "a tensor in it is malformed"),
    "offset -4":                    (dump(tensor(storage_bytes(), -4, (4,), (1,))), "a tensor in it is malformed"),
    "100,000 dimensions":           (dump(tensor(storage_bytes(), 0, (1,) * 100_000, (1,) * 100_000)),
                                     "a tensor in it is malformed"),
    "decode of 2^40":               (dump(Call(persistence.decode_tensor, b"1234", "float32", (1 << 40,))),
                                     "does not fit together"),
    "decode of 100,000 dimensions": (dump(Call(persistence.decode_tensor, b"", "uint8", ((1 << 60) - 1,) * 100_000)),
                                     "does not fit together"),
    "decode of a laugh":            (dump(Call(persistence.decode_tensor, b"", "uint8", [["x" * 1000] * 1000] * 60)),
                                     "does not fit together"),
    "long storage":                 (dump(tensor(storage_bytes(program(NONE + (NONE + b"0") * 1000)))),
                                     "more than 200 opcodes"),
    "EasyDict of pairs":            (program(in_G(call(EASY_DICT, value([["ab", 1]])))),
                                     "an EasyDict in it is malformed"),
    "size of a text":               (program(in_G(call(of_line("torch.Size"), text("x" * 1_000_000)))),
                                     "a size in it is malformed"),
}
CONTENT = {
    "a list":                       (pickle.dumps([1, 2]), "list, not a dict|another form"),
    "keys that are numbers":        (pickle.dumps({1: 2}), "not a dict of networks"),
    "G is a text":                  (dump("net"), "its G is a str, not a network"),
    "G is a tensor":                (dump(torch.zeros(2)), "its G is a Tensor, not a network"),
    "G is a set of itself":         (dump({1, 2}), "its G is a set, not a network"),
    "G is an EasyDict":             (dump(EasyDict(eval=1, training=True)), "its G is a EasyDict, not a network"),
    "G is a part":                  (dump(Call(persistence._reconstruct_persistent_obj,
                                               dict(type="class", version=6, class_name="SynthesisLayer",
                                        module_src="x = 1", state=dict(_parameters={}, _buffers={}, _modules={})))),
                                     "its G is a Part, not a network"),
    "meta of a text":               (dump(Call(persistence._reconstruct_persistent_obj, "net")), "stored as str"),
    "meta without entries":         (dump(Call(persistence._reconstruct_persistent_obj, {})), "class name is NoneType"),
    "class name of a list":         (network(meta(class_name=["x" * 1000] * 100)), "class name is list"),
    "class name of a megabyte":     (network(meta(class_name="x" * 1_000_000)), "200 letters"),
    "too many networks":            (dump([Call(persistence._reconstruct_persistent_obj, PIPE) for _ in range(65)]),
                                     "more than 64 networks"),
    "state of a list":              (network(meta(state=[1])), "incomplete"),
    "tensors of a list":            (network(meta(state=dict(tensors=[1]))), "no tensors"),
    "init arguments of a text":     (network(meta(init_kwargs="abc")), "incomplete"),
    "keys of init arguments":       (network(meta(init_kwargs={1: 2, None: 3})), "cannot be built|incomplete"),
    "too many init arguments":      (network(meta(init_args=tuple(range(100_000)))), "init arguments|cannot be built"),
    "version of tomorrow":          (network(meta(class_name="training.networks_stylegan9.Generator", version=99)),
                                     "networks_stylegan9"),
    "lacks a tensor":               (without_tensor("mapping.fc0.weight"), r"lacks its tensor 'mapping\.fc0\.weight'"),
    "a tensor too many":            (with_tensor("../../x", persistence.StoredTensor(torch.zeros(1))),
                                     "no such tensor as"),
    "tensor of another shape":      (with_tensor("mapping.fc0.weight", persistence.StoredTensor(torch.zeros(8, 9))),
                                     r"shape \[8, 9\], expected \[8, 8\]"),
    "tensor of another kind":       (with_tensor("mapping.fc0.weight",
                                                 persistence.StoredTensor(torch.zeros(8, 8, dtype=torch.int32))),
                                     "int32"),
    "text as tensor":               (with_tensor("mapping.fc0.weight", "abc"), "stored as str"),
    "released, no tensor":          (released(b"\x05const", b"\x05konst"), "no tensor 'const'"),
    "released, no part":            (released(b"\x05conv1", b"\x05konv1"), "no part 'conv1'"),
    "released, EG3D":               (released(b"SynthesisNetwork", b"TriPlaneRenderer"), "TriPlaneRenderer"),
    "released, unknown argument":   (released(b"\x0cchannel_base", b"\x0cchannel_bass"), "channel_bass"),
}


TF_NETWORK = of_line("dnnlib.tflib.network.Network")


def tensorflow(path=None, times=3, **changes):
    """As (G, D, Gs) of StyleGAN2 of the TensorFlow era: a network without variables."""
    source = f"open({str(path)!r}, 'w')"
    state = dict(dict(version=4, name="G", static_kwargs={}, components={}, variables=[], build_module_src=source,
                      build_func_name="G_main"), **changes)
    return program(MARK + (TF_NETWORK + EMPTY_TUPLE + b"\x81" + value(state) + BUILD) * times + TUPLE)


TENSORFLOW = {
    "TensorFlow source":            (tensorflow, "."),
    "TensorFlow, one network":      (lambda p: tensorflow(p, times=1), "TensorFlow"),
    "TensorFlow, no state":         (lambda p: program((TF_NETWORK + EMPTY_TUPLE + b"\x81") * 3 + b"\x87"),
                                     "TensorFlow"),
    "TensorFlow, text as state":    (lambda p: program((TF_NETWORK + EMPTY_TUPLE + b"\x81" + text("x") + BUILD) * 3 + b"\x87"),
                                     "TensorFlow"),
    "TensorFlow, its class":        (lambda p: program(TF_NETWORK + value({"translate": 1}) + BUILD),
                                     "tries to change"),
    "TensorFlow, components":       (lambda p: tensorflow(p, components={"mapping": "os.system"}), "TensorFlow"),
    "TensorFlow, in itself":        (lambda p: program(TF_NETWORK + EMPTY_TUPLE + b"\x81" + MEMOIZE + b"}" + text("components")
                                        + b"}"
                                        + text("mapping") + b"h\x00ss" + BUILD), "contains itself"),
    "TensorFlow, variables":        (lambda p: tensorflow(p, variables=[("4x4/Const/const", "x")]), "TensorFlow"),
    "TensorFlow, resolution":       (lambda p: tensorflow(p,
                                                          static_kwargs=dict(resolution=1 << 20,
                                                                             num_channels=1 << 40)), "."),
}
# What init arguments could cost.
ARGUMENTS = {
    "resolution of 2^20":           dict(img_resolution=1 << 20),
    "resolution of 2^62":           dict(img_resolution=1 << 62),
    "resolution of 0":              dict(img_resolution=0),
    "resolution of -16":            dict(img_resolution=-16),
    "resolution of 17":             dict(img_resolution=17),
    "resolution of NaN":            dict(img_resolution=float("nan")),
    "resolution of infinity":       dict(img_resolution=float("inf")),
    "resolution as text":           dict(img_resolution="16"),
    "channels of 2^40":             dict(channel_base=1 << 40, channel_max=1 << 40),
    "channels of -1":               dict(channel_base=-1, channel_max=-1),
    "channels of NaN":              dict(channel_base=float("nan")),
    "image channels of 2^40":       dict(img_channels=1 << 40),
    "z_dim of 2^40":                dict(z_dim=1 << 40),
    "w_dim of 2^40":                dict(w_dim=1 << 40),
    "w_dim of NaN":                 dict(w_dim=float("nan")),
    "c_dim of 2^40":                dict(c_dim=1 << 40),
    "z_dim of -1":                  dict(z_dim=-1),
    "10^9 layers":                  dict(mapping_kwargs=dict(num_layers=10 ** 9)),
    "10^6 layers":                  dict(mapping_kwargs=dict(num_layers=10 ** 6)),
    "layers of 2^40 features":      dict(mapping_kwargs=dict(num_layers=2, layer_features=1 << 40)),
    "embedding of 2^40 features":   dict(c_dim=4, mapping_kwargs=dict(num_layers=2, embed_features=1 << 40)),
    "filter of 10^8 taps":          dict(resample_filter=[1] * 100_000),
    "options of a network":         dict(mapping_kwargs="num_layers"),
    "an unknown argument":          dict(os="system"),
}


def all_files(path):
    """name -> (bytes, message)."""
    files = {f"name {name}": (program(in_G(call(of_line(name), text(f"touch {path}")))), name.replace(".", r"\."))
             for name in SYSTEM}
    files |= {f"protocol 4 name {name}": (program(in_G(call(named(*name.rsplit(".", 1)), text(f"touch {path}")))),
                                          name.replace(".", r"\."))
              for name in SYSTEM[:6]}
    files |= {f"dotted {module[:40]!r} {name!r}": (program(in_G(call(named(module, name), text(f"touch {path}")))),
                                                   "names|no text") for module, name in DOTTED}
    files |= {name: (make(path), message) for name, (make, message) in EXECUTION.items()}
    files |= {name: (make(path), message) for name, (make, message) in TENSORFLOW.items()}
    return {**files, **STATE, **BOUNDS, **CONTENT}
