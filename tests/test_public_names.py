"""The names that scripts and notebooks of StyleGAN3, EG3D and the released code call.

Each is there, takes what it took, and does one thing right. A row is the dotted name, the parameters as those projects have
them (ours may take more, with defaults), and a check of a value that does not come from the code under test.
"""

import ctypes
import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dnnlib.util
from dnnlib.util import get_module_from_obj_name, get_obj_by_name

ROOT = Path(__file__).resolve().parent.parent
U, M, S, F = "dnnlib.util.", "torch_utils.misc.", "torch_utils.training_stats.", "torch_utils.ops.upfirdn2d."
C, V, L = "training.camera_utils.", "training.math_utils.", "training.training_loop."


def top_level():
    """Something that a script may hand over by name."""


class Alone(torch.nn.Linear):
    pass


# --- one check each: f is the object, tmp a folder, mp monkeypatch

def check_set_cache_dir(f, tmp, mp):
    mp.setattr(dnnlib.util, "_cache_dir", None)
    mp.setenv("DNNLIB_CACHE_DIR", "/elsewhere")
    f(str(tmp))
    assert dnnlib.util.make_cache_dir_path("a", "b") == os.path.join(tmp, "a", "b") and not (tmp / "a").exists()
    f(None)
    assert dnnlib.util.make_cache_dir_path("a") == "/elsewhere/a"


def check_ask_yes_no(f, tmp, mp):
    answers = iter(["perhaps", "", "YES", "n"])
    mp.setattr("builtins.input", lambda prompt: next(answers))
    assert f("Sure?") is True and f("Sure?") is False


def check_list_dir(f, tmp, mp):
    for name in ("top.py", "keep/a.txt", "keep/b.pyc", "skip/c.txt", "keep/deep/d.txt"):
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_text(name)
    wanted = ["keep/a.txt", "keep/deep/d.txt", "top.py"]
    found = f(str(tmp), ignores=["*.pyc", "skip"])
    assert sorted(found) == [(str(tmp / name), name) for name in wanted]
    found = f(str(tmp), ["*.pyc", "skip"], add_base_to_relative=True)
    assert sorted(relative for _, relative in found) == [f"{tmp.name}/{name}" for name in wanted]
    assert len(f(str(tmp))) == 5


def check_copy_files(f, tmp, mp):
    (tmp / "a.txt").write_text("text")
    f([(str(tmp / "a.txt"), str(tmp / "new" / "deep" / "b.txt"))])
    assert (tmp / "new/deep/b.txt").read_text() == "text"


def check_is_url(f, tmp, mp):
    assert f("https://example.com/a.pkl") and f("http://example.com")
    assert not f("file:///a.pkl") and f("file:///a.pkl", allow_file_urls=True)
    assert not any(f(other) for other in ("a.pkl", "/a/b.pkl", "C:\\a.pkl", "http://", None, 3, Path("/a")))


def check_dtype_and_ctype(f, tmp, mp):
    for spelled in ("float32", np.float32, np.dtype("float32")):
        assert f(spelled) == (np.dtype("float32"), ctypes.c_float)
    assert f("uint8") == (np.dtype("uint8"), ctypes.c_ubyte) and f("int64")[1] is ctypes.c_int64


def check_module_from_name(f, tmp, mp):
    assert f("torch.nn.functional.relu") == (torch.nn.functional, "relu") and f("np.array") == (np, "array")
    assert f("collections.OrderedDict.fromkeys")[1] == "OrderedDict.fromkeys"
    with pytest.raises(ImportError, match="nothing_like_it"):
        f("torch.nn.nothing_like_it")


def check_is_top_level(f, tmp, mp):
    assert f(top_level) and f(Alone) and not f(lambda: 0) and not f(3) and not f(Alone(1, 1))


def check_top_level_name(f, tmp, mp):
    assert f(top_level) == f"{__name__}.top_level"
    with pytest.raises(AssertionError):
        f(lambda: 0)
    script = tmp / "my_script.py"
    script.write_text("import dnnlib.util\ndef f(): pass\nprint(dnnlib.util.get_top_level_function_name(f))\n")
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment).stdout
    assert said == "my_script.f\n"


def check_ddp_sync(f, tmp, mp):
    layer = Alone(2, 1, bias=False)
    with f(layer, sync=False):
        layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad.tolist() == [[1, 1]]
    entered = []
    mp.setattr(torch.nn.parallel, "DistributedDataParallel", Alone)
    layer.no_sync = lambda: entered.append(1) or __import__("contextlib").nullcontext()
    for sync in (True, False):
        with f(layer, sync):
            pass
    assert len(entered) == 1                                        # only where nothing is to be sent
    with pytest.raises(AssertionError):
        f("no module", True).__enter__()


def check_init_multiprocessing(f, tmp, mp):
    from torch_utils import training_stats
    collector = training_stats.Collector("names/.*")
    f(rank=1, sync_device=None)
    training_stats.report0("names/zero", 5.0)
    training_stats.report("names/all", 5.0)
    f(rank=0, sync_device=None)
    training_stats.report0("names/zero", torch.tensor([1.0, 2.0]))
    collector.update()
    f(rank=None, sync_device=None)
    assert collector.num("names/zero") == 2 and collector["names/zero"] == 1.5 and collector["names/all"] == 5


def check_default_collector(f, tmp, mp):
    from torch_utils import training_stats
    for values, mean in (([1.0, 2.0, 6.0], 3.0), ([10.0], 10.0)):
        training_stats.report("names/default", torch.tensor(values))
        f.update()
        assert f.mean("names/default") == f["names/default"] == f.as_dict()["names/default"].mean == mean
        assert f.num("names/default") == len(values)
    training_stats.reset()
    training_stats.report("names/default", 4.0)
    f.update()
    assert f["names/default"] == 4 and f.num("names/default") == 1  # not what was there before the reset


def check_snapshot_grid(f, tmp, mp):
    class Items:
        image_shape = [3, 512, 1024]
        has_onehot_labels = False

        def __len__(self):
            return 10

        def __getitem__(self, i):
            return np.full([3, 2, 2], i, dtype=np.uint8), np.full([25], i, dtype=np.float32)

    size, images, labels = f(Items(), random_seed=3)
    assert size == (7, 8) and images.shape == (56, 3, 2, 2) and labels.shape == (56, 25)
    order = list(range(10))
    np.random.RandomState(3).shuffle(order)                         # as StyleGAN3 chooses them
    assert labels[:, 0].tolist() == [order[i % 10] for i in range(56)] == images[:, 0, 0, 0].tolist()
    Items.image_shape = [3, 16, 16]
    assert f(Items())[0] == (32, 32)


def check_save_image_grid(f, tmp, mp):
    values = np.array([-1, 1, 0, -3, 3, 0.5], dtype=np.float32)
    images = np.broadcast_to(values[:, None, None, None], (6, 3, 4, 5))
    for number, img in enumerate((images, torch.from_numpy(images.copy()).requires_grad_())):
        f(img, str(tmp / f"{number}.png"), drange=[-1, 1], grid_size=(3, 2))
        sheet = np.asarray(Image.open(tmp / f"{number}.png"))
        assert sheet.shape == (8, 15, 3) and sheet[::4, ::5, 0].tolist() == [[0, 255, 128], [0, 255, 191]]


def check_make_transform(f, tmp, mp):
    np.testing.assert_allclose(f((0.25, -0.5), 90), [[0, 1, 0.25], [-1, 0, -0.5], [0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(f((0, 0), 60)[:2, :2], [[0.5, math.sqrt(0.75)], [-math.sqrt(0.75), 0.5]])


def check_parse_range(f, tmp, mp):
    assert f("1,2,5-8") == [1, 2, 5, 6, 7, 8] and f([3, 4]) == [3, 4]
    with pytest.raises(ValueError, match="5-x"):
        f("5-x")


def check_parse_vec2(f, tmp, mp):
    assert f("0.5,-1") == (0.5, -1.0) and f((1, 2)) == (1, 2)
    with pytest.raises(ValueError, match="two numbers"):
        f("1")
    with pytest.raises(ValueError, match="numbers"):
        f("a,b")


def check_blender_matrix(f, tmp, mp):
    pose = f(torch.tensor([[-2.0, 0, 0]]), torch.tensor([[1.3, 0, 0]]))          # from +x to the origin: right is +y
    assert pose[0].tolist() == [[0, 0, -1, pytest.approx(1.3)], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]


def check_matrix(f, tmp, mp):
    pose = f(torch.tensor([[0, 0, -5.0]]), torch.tensor([[0, 0, 2.7]]))          # not of length 1
    assert pose[0].tolist() == [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, pytest.approx(2.7)], [0, 0, 0, 1]]


def check_single_rays(f, tmp, mp):
    c2w = torch.eye(4)
    c2w[:3, 3] = torch.tensor([1.0, 2, 3])
    origins, directions = f(4, 4, torch.diag(torch.tensor([2.0, 4, 1])), c2w)
    assert origins.shape == directions.shape == (3, 4, 4)
    assert (origins == torch.tensor([1.0, 2, 3])[:, None, None]).all()
    wanted = torch.tensor([1.5 / 2, 2.5 / 4, 1])                     # the row index runs over x
    torch.testing.assert_close(directions[:, 1, 2], wanted / wanted.norm())


def check_ray_limits(f, tmp, mp):
    origins = torch.tensor([[[0, 0, 3.0], [0, 0, 0], [5, 0, 3], [0.2, 0.2, 3], [0.5, 0, 3]]])
    directions = torch.tensor([[[0, 0, -1.0], [0, 0, -1], [0, 0, -1], [0, 0, -2], [0, 0, -1]]])
    start, end = f(origins, directions, box_side_length=1)
    assert start.shape == end.shape == (1, 5, 1)
    assert start.flatten().tolist() == [2.5, -0.5, -1, 1.25, 2.5]
    assert end.flatten().tolist() == [3.5, 0.5, -2, 1.75, 3.5]
    start, end = f(torch.tensor([[2.0, 0.1, 0]]), torch.tensor([[-1, 0.25, 0]]), 2)
    assert (start.item(), end.item()) == (1.0, 3.0)


def check_linspace(f, tmp, mp):
    out = f(torch.tensor([0.0, 10.0]), torch.tensor([1.0, 20.0]), 5)
    assert out.tolist() == [[0, 10], [0.25, 12.5], [0.5, 15], [0.75, 17.5], [1, 20]]
    assert f(torch.zeros(2, 3), torch.ones(2, 3), 1).tolist() == torch.zeros(1, 2, 3).tolist()


def equal(arguments, wanted):
    def check(f, tmp, mp):
        result = f(*arguments)
        assert torch.equal(result, wanted) if isinstance(wanted, torch.Tensor) else result == wanted
    return check


def check_loss(f, tmp, mp):
    from training.loss import StyleGAN2Loss
    assert issubclass(StyleGAN2Loss, f)
    with pytest.raises(NotImplementedError):
        f().accumulate_gradients("Gmain", *[None] * 6)


def check_pickleable(f, tmp, mp):
    assert f([1, "a", np.ones(2)]) and f(torch.zeros(1)) and not f(lambda: 0) and not f(open(os.devnull))


def check_command(option):
    def check(f, tmp, mp):
        assert option in [option for parameter in f.params for option in parameter.opts]
    return check


TABLE = [
    (U + "set_cache_dir",                       "path",                           check_set_cache_dir),
    (U + "ask_yes_no",                          "question",                       check_ask_yes_no),
    (U + "tuple_product",                       "t",                              equal([(2, 3, 7)], 42)),
    (U + "get_dtype_and_ctype",                 "type_obj",                       check_dtype_and_ctype),
    (U + "is_pickleable",                       "obj",                            check_pickleable),
    (U + "get_module_from_obj_name",            "obj_name",                       check_module_from_name),
    (U + "get_obj_from_module",                 "module, obj_name",               equal([math, "pi"], math.pi)),
    (U + "get_module_dir_by_obj_name",          "obj_name",                       equal(["dnnlib.EasyDict"], str(ROOT / "dnnlib"))),
    (U + "is_top_level_function",               "obj",                            check_is_top_level),
    (U + "get_top_level_function_name",         "obj",                            check_top_level_name),
    (U + "list_dir_recursively_with_ignore",    "dir_path, ignores=None, add_base_to_relative=False", check_list_dir),
    (U + "copy_files_and_create_dirs",          "files",                          check_copy_files),
    (U + "is_url",                              "obj, allow_file_urls=False",     check_is_url),
    (M + "ddp_sync",                            "module, sync",                   check_ddp_sync),
    (M + "symbolic_assert",                     "condition, message",             equal([True, "fine"], None)),
    (S + "init_multiprocessing",                "rank, sync_device",              check_init_multiprocessing),
    (S + "default_collector",                   None,                             check_default_collector),
    (F + "_parse_scaling",                      "scaling",                        equal([(2, 3)], (2, 3))),
    (F + "_parse_padding",                      "padding",                        equal([[1, 2]], (1, 1, 2, 2))),
    (F + "_get_filter_size",                    "f",                              equal([torch.ones(3, 5)], (5, 3))),
    ("gen_images.make_transform",               "translate, angle",               check_make_transform),
    ("gen_images.parse_range",                  "s",                              check_parse_range),
    ("gen_images.parse_vec2",                   "s",                              check_parse_vec2),
    ("gen_images.generate_images",              None,                             check_command("--seeds")),
    ("calc_metrics.calc_metrics",               None,                             check_command("--metrics")),
    ("legacy.convert_network_pickle",           None,                             check_command("--source")),
    (L + "setup_snapshot_image_grid",           "training_set, random_seed=0",    check_snapshot_grid),
    (L + "save_image_grid",                     "img, fname, drange, grid_size",  check_save_image_grid),
    ("training.loss.Loss",                      "",                               check_loss),
    ("training.loss.Loss.accumulate_gradients", "self, phase, real_img, real_c, gen_z, gen_c, gain, cur_nimg", None),
    ("training.plucker.get_rays_single_image",  "H, W, intrinsics, c2w",          check_single_rays),
    (C + "create_cam2world_matrix",             "forward_vector, origin",         check_matrix),
    (C + "create_blender_cam2world_matrix",     "forward_vector, origin",         check_blender_matrix),
    (V + "transform_vectors",                   "matrix, vectors4",
     equal([torch.eye(4) * 2 + torch.eye(4).roll(3, 1), torch.tensor([[1.0, 2, 3, 1]])], torch.tensor([[3.0, 5, 8, 5]]))),
    (V + "normalize_vecs",                      "vectors",
     equal([torch.tensor([[3.0, 4]])], torch.tensor([[0.6, 0.8]]))),
    (V + "torch_dot",                           "x, y",
     equal([torch.ones(2, 3), 2 * torch.ones(2, 3)], torch.full([2], 6.0))),
    (V + "get_ray_limits_box",                  "rays_o, rays_d, box_side_length", check_ray_limits),
    (V + "linspace",                            "start, stop, num",               check_linspace),
]
SAMPLER = "horizontal_mean, vertical_mean, horizontal_stddev=0, vertical_stddev=0, radius=1, batch_size=1, device='cpu'"
# Names that were there before, and that have tests of their own: only what they take.
SIGNATURES = [
    (U + "make_cache_dir_path", "*paths"), (U + "format_time", "seconds"), (U + "format_time_brief", "seconds"),
    (U + "get_obj_by_name", "name"), (U + "call_func_by_name", "*args, func_name, **kwargs"),
    (U + "construct_class_by_name", "*args, class_name, **kwargs"),
    (M + "constant", "value, shape=None, dtype=None, device=None, memory_format=None"),
    (M + "assert_shape", "tensor, ref_shape"), (M + "profiled_function", "fn"), (M + "suppress_tracer_warnings", ""),
    (M + "InfiniteSampler", "dataset, rank=0, num_replicas=1, shuffle=True, seed=0, window_size=0.5"),
    (M + "params_and_buffers", "module"), (M + "named_params_and_buffers", "module"),
    (M + "copy_params_and_buffers", "src_module, dst_module, require_all=False"),
    (M + "check_ddp_consistency", "module, ignore_regex=None"),
    (M + "print_module_summary", "module, inputs, max_nesting=3, skip_redundant=True"),
    (S + "report", "name, value"), (S + "report0", "name, value"), (S + "Collector", "regex='.*', keep_previous=True"),
    (F + "upfirdn2d", "x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl='cuda'"),
    (C + "GaussianCameraPoseSampler.sample", SAMPLER), (C + "UniformCameraPoseSampler.sample", SAMPLER),
    (C + "LookAtPoseSampler.sample", SAMPLER.replace("mean, horizontal_s", "mean, lookat_position, horizontal_s")),
    (C + "UniformBlenderPoseSampler.sample", "radius=1, batch_size=1, device='cpu'"),
    (C + "UniformBlenderPoseSampler.sample_hv", "h_val, v_val, radius=1, batch_size=1, device='cpu'"),
    (C + "UniformBlenderPoseSampler.sample_upper_hemi", "radius=1, batch_size=1, device='cpu'"),
    (C + "FOV_to_intrinsics", "fov_degrees, device='cpu'"),
]
TAKES = [(name, parameters) for name, parameters, _ in TABLE if parameters is not None] + SIGNATURES


@pytest.mark.parametrize("name, parameters", TAKES, ids=[name for name, _ in TAKES])
def test_takes_what_it_took(name, parameters):
    wanted = eval(f"lambda {parameters}: 0")
    wanted = list(inspect.signature(wanted).parameters.values())
    try:
        ours = list(inspect.signature(get_obj_by_name(name)).parameters.values())
    except ValueError:                                              # built into torch
        return
    for ours_one, wanted_one in zip(ours, wanted):
        assert (ours_one.name, ours_one.kind) == (wanted_one.name, wanted_one.kind)
        assert ours_one.default == wanted_one.default or ours_one.kind is inspect.Parameter.KEYWORD_ONLY, ours_one
    assert len(ours) >= len(wanted), f"{name} lacks {wanted[len(ours):]}"
    for more in ours[len(wanted):]:
        assert more.default is not inspect.Parameter.empty or more.kind in (more.VAR_POSITIONAL, more.VAR_KEYWORD), more


DOES = [(name, check) for name, _, check in TABLE if check is not None]


@pytest.mark.parametrize("name, check", DOES, ids=[name for name, _ in DOES])
def test_does_what_it_did(name, check, tmp_path, monkeypatch):
    check(get_obj_by_name(name), tmp_path, monkeypatch)


def test_a_layer_written_for_stylegan3_runs():
    """Its own arithmetic on the arguments of upfirdn2d, as users' layers have it."""
    from torch_utils.ops import upfirdn2d
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    fw, fh = upfirdn2d._get_filter_size(f)
    upx, upy = upfirdn2d._parse_scaling(2)
    padx0, padx1, pady0, pady1 = upfirdn2d._parse_padding(0)
    padding = [padx0 + (fw + upx - 1) // 2, padx1 + (fw - upx) // 2,
               pady0 + (fh + upy - 1) // 2, pady1 + (fh - upy) // 2]
    x = torch.randn(1, 2, 4, 4)
    by_hand = upfirdn2d.upfirdn2d(x, f, up=2, padding=padding, gain=upx * upy)
    torch.testing.assert_close(by_hand, upfirdn2d.upsample2d(x, f))


def test_none_of_them_acts_on_import(tmp_path):
    """Importing writes nothing, prints nothing and leaves the global generator alone."""
    modules = {get_module_from_obj_name(name)[0].__name__ for name, _ in TAKES} | {"notebook_utils"}
    imports = "".join(f"import {module}\n" for module in sorted(modules))
    code = (f"import torch\nbefore = torch.random.get_rng_state()\n{imports}"
            "assert torch.equal(before, torch.random.get_rng_state())")
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                            env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "") and not list(tmp_path.iterdir())
