"""Small utilities: names, addresses, log files, durations."""

import errno
import http.server
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from helpers import assert_refused

import dnnlib
from dnnlib import EasyDict, UserError, cli
from dnnlib.util import (
    Logger,
    Screen,
    closest,
    construct_class_by_name,
    format_time,
    format_time_brief,
    get_obj_by_name,
    is_at_hand,
    naming,
    open_url,
    parse_json,
    usable_cores,
)

ROOT = Path(__file__).resolve().parent.parent


def test_easy_dict():
    d = EasyDict(a=1)
    d.b = 2
    assert (d.a, d["b"], dict(d)) == (1, 2, dict(a=1, b=2))
    del d.a
    with pytest.raises(AttributeError, match="'a'"):
        d.a  # noqa: B018
    with pytest.raises(AttributeError):
        del d.a
    assert not hasattr(d, "missing") and EasyDict(d) == d


def test_user_error_is_one_line_and_a_value_error():
    error = UserError("first\n   second\x1b[31m\x07")
    assert error.format_message() == "first second\\x1b[31m\\x07" and isinstance(error, ValueError) and error.exit_code == 1


@pytest.mark.parametrize("name, hint", [("fhq", "did you mean FFHQ? "), ("CARDS", "did you mean cars? "), ("xyz", ""), ("", "")])
def test_the_closest_name_is_suggested(name, hint):
    assert closest(name, ["FFHQ", "afhq", "cars"]) == hint
    assert closest(name, {}) == ""


def test_objects_by_name():
    assert get_obj_by_name("os.path.join") is os.path.join
    assert get_obj_by_name("dnnlib.util.EasyDict.fromkeys") == EasyDict.fromkeys
    assert construct_class_by_name(3, class_name="fractions.Fraction", denominator=4) * 4 == 3
    assert dnnlib.util.call_func_by_name("a", "b", func_name="os.path.join") == os.path.join("a", "b")
    for name in ("no_such_package.x", "os.no_such_thing", "os.path.join.nothing", "no_such_package"):
        with pytest.raises(ImportError, match=name.split(".")[-1]):
            get_obj_by_name(name)


def test_failing_import_is_not_taken_for_a_missing_module(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import a_package_that_is_not_there\nx = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        get_obj_by_name("broken_module.x")


@pytest.mark.parametrize("seconds, long, brief", [
    (0, "0s", "0s"), (59.4, "59s", "59s"), (59.6, "1m 00s", "1m 00s"), (3599, "59m 59s", "59m 59s"), (3600, "1h 00m 00s", "1h 00m"),
    (86399, "23h 59m 59s", "23h 59m"), (86400, "1d 00h 00m", "1d 00h"), (10 * 86400 + 3660, "10d 01h 01m", "10d 01h"),
])
def test_format_time(seconds, long, brief):
    assert (format_time(seconds), format_time_brief(seconds)) == (long, brief)


# ---------------------------------------------------------------------------------------------------------------------
# Addresses.

@pytest.fixture
def server():
    """A loopback web server that counts what it is asked; its first answer to /flaky is a failure."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            fails = self.path == "/missing.pkl" or (self.path == "/flaky.pkl" and requests.count("/flaky.pkl") == 1)
            self.send_response(500 if fails else 200)
            if self.path == "/named":
                self.send_header("Content-Disposition", 'attachment; filename="../../etc/pass wd.pkl"')
            body = b"" if self.path == "/empty.pkl" else b"content of " + self.path.encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", requests
        httpd.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def test_open_url_reads_files(tmp_path):
    path = tmp_path / "with space.bin"
    path.write_bytes(b"abc")
    for url in (str(path), path, path.as_uri()):
        with open_url(url) as stream:
            assert stream.read() == b"abc"
        assert open_url(url, return_filename=True) == str(path)
    with pytest.raises(UserError, match="nix.bin"):
        open_url(str(tmp_path / "nix.bin"))


def test_open_url_downloads_once(server, cache):
    url, requests = server
    for _ in range(2):
        with open_url(f"{url}/net.pkl", verbose=False) as stream:
            assert stream.read() == b"content of /net.pkl"
    path = open_url(f"{url}/net.pkl", verbose=False, return_filename=True)
    assert requests == ["/net.pkl"]
    assert os.path.dirname(path) == str(cache / "downloads") and path.endswith("_net.pkl")
    with open(path, "rb") as stream:
        assert stream.read() == b"content of /net.pkl"
    assert open_url(f"{url}/net.pkl?other", verbose=False).read() == b"content of /net.pkl?other"


def test_open_url_without_a_cache(server, cache):
    url, requests = server
    for _ in range(2):
        assert open_url(f"{url}/net.pkl", verbose=False, cache=False).read() == b"content of /net.pkl"
    assert len(requests) == 2 and not cache.exists()


def test_open_url_ignores_interrupted_downloads(server, cache):
    url, _ = server
    path = open_url(f"{url}/net.pkl", verbose=False, return_filename=True)
    os.remove(path)
    with open(path + ".part", "wb") as stream:
        stream.write(b"cont")
    assert open_url(f"{url}/net.pkl", verbose=False).read() == b"content of /net.pkl"


def test_names_given_by_servers_stay_inside_the_cache(server, cache):
    path = open_url(f"{server[0]}/named", verbose=False, return_filename=True)
    assert os.path.dirname(os.path.realpath(path)) == os.path.realpath(cache / "downloads")
    assert sorted(os.listdir(cache / "downloads")) == [os.path.basename(path)]


def test_open_url_tries_again_and_gives_up_in_one_line(server, cache):
    url, requests = server
    assert open_url(f"{url}/flaky.pkl", verbose=False).read() == b"content of /flaky.pkl"
    for name in ("missing", "empty"):
        requests.clear()
        with pytest.raises(UserError, match=f"{name}.pkl") as error:
            open_url(f"{url}/{name}.pkl", num_attempts=2, verbose=False)
        assert len(requests) == 2 and "\n" not in error.value.format_message()
    assert not any(name.endswith(".part") for name in os.listdir(cache / "downloads"))


# ---------------------------------------------------------------------------------------------------------------------
# What commands share.

def commands():
    """Each command of the project by its name."""
    import calc_metrics
    import gen_images
    import legacy
    import train
    from dataset_preprocessing.procedural.cli import main as render
    from demo.run import main as demo
    from metrics import pose_regressor, scene_embedding
    return dict(train=train.main, gen_images=gen_images.main, calc_metrics=calc_metrics.main, prepare=calc_metrics.main.commands["prepare"],
                legacy=legacy.main, pose_regressor=pose_regressor.main, scene_embedding=scene_embedding.main, render=render, demo=demo)


def test_every_command_has_what_all_share_and_every_path_expands_the_home_folder():
    expanded = set()
    for name, command in commands().items():
        assert isinstance(command, (cli.Command, cli.Group)), name
        for option in command.params:
            words = set(re.split(r"[^A-Z]+", option.metavar or ""))
            assert isinstance(option.type, cli.PathType) == bool(words & {"DIR", "ZIP", "PKL", "FILE", "PATH", "PT"}), (name, option.opts)
            if isinstance(option.type, cli.PathType):
                expanded.add(max(option.opts, key=len))
    assert expanded >= {"--outdir", "--data", "--resume", "--detector", "--pose-regressor", "--embedding", "--network", "--camera-file", "--images",
                        "--source", "--dest"}


@pytest.mark.parametrize("text, names", [("a,b", ("a", "b")), (" a, b ,", ("a", "b")), ("None", ()), ("", ()), (" none ", ()), (None, None)])
def test_comma_lists(text, names):
    assert cli.comma_list(None, None, text) == names


def test_options_of_several_commands_are_the_same_everywhere():
    found = {}
    for command in commands().values():
        for option in command.params:
            found.setdefault(max(option.opts, key=len), []).append(option)
    for name, least in [("--device", 6), ("--samples", 2), ("--detector", 2), ("--pose-regressor", 2), ("--embedding", 2)]:
        options = found[name]
        assert len(options) >= least, name
        for option in options[1:]:
            assert option.to_info_dict() == options[0].to_info_dict(), name


@click.command(cls=cli.Command)
@click.option("--path", type=cli.PATH)
@click.option("--detector", type=cli.KIND_PATH, multiple=True)
@click.option("--name", type=cli.NAME)
@click.option("--text", type=cli.TEXT)
@click.option("--number", type=int)
@click.option("--flag", is_flag=True)
def show(**values):
    print(json.dumps(values))


def shown(*args):
    result = CliRunner().invoke(show, args)
    assert result.exit_code == 0, result.output
    return {key: value for key, value in json.loads(result.stdout).items() if value}


@pytest.mark.parametrize("given, expected", [
    ("~/a.zip", "HOME/a.zip"), ("~", "HOME"), ("a~/b", "a~/b"), ("/~/b", "/~/b"), ("http://x.org/~me/a.pkl", "http://x.org/~me/a.pkl"),
    ("file:///a/~b", "file:///a/~b"), ("auto", "auto"), ("~nobody-is-called-so/a", "~nobody-is-called-so/a"),
])
def test_a_leading_tilde_is_the_home_folder(monkeypatch, given, expected):
    monkeypatch.setenv("HOME", "HOME")
    assert shown(f"--path={given}") == dict(path=expected)
    assert shown(f"--detector={given}", f"--detector=vgg16={given}") == dict(detector=[expected, f"vgg16={expected}"])


def test_the_cache_folder_may_be_given_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", "~/cache")
    assert dnnlib.make_cache_dir_path("a") == "/home/me/cache/a"


def test_carriage_returns_of_windows_scripts_are_dropped():
    assert shown("--path=a\r", "--name", "b\r", "--number=3\r", "--flag\r", "\r") == dict(path="a", name="b", number=3, flag=True)


@pytest.mark.parametrize("option", ["--path", "--name", "--number", "--detector", "--text"])
@pytest.mark.parametrize("bad", ["\x1b", "\x07", "\0", "\x7f", "\x9b", "\u2028"])
def test_control_characters_are_refused_in_one_line(option, bad):
    assert_refused(show, f"{option}=a{bad}b", says=[option, ascii(f"a{bad}b"), "control character"])


@pytest.mark.parametrize("bad", ["\n", "\t", "a\rb"])
def test_lines_are_refused_but_in_texts(bad):
    assert_refused(show, f"--path=a{bad}b", says=["--path", "control character"])
    assert shown(f"--text=a{bad}b") == dict(text=f"a{bad}b")


@pytest.mark.parametrize("bad", ["a/b", "../b", "a\\b", "/"])
def test_names_hold_no_separators(bad):
    assert_refused(show, f"--name={bad}", says=[f"--name={bad}", "folder's name"])
    assert shown("--name=a.b-c é~") == dict(name="a.b-c é~")


class Terminal(io.TextIOWrapper):
    """A text stream that holds bytes in some encoding, or fails."""

    def __init__(self, encoding="ascii", error=None):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self.error = error

    def write(self, text):
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_no_print_ends_a_command(monkeypatch, stream):
    @click.command(cls=cli.Command)
    def speak():
        print("é", file=getattr(sys, stream), flush=True)
        done.append(getattr(sys, stream).isatty())

    closed = Terminal()
    closed.close()
    for broken, heard in ((Terminal(), b"\\xe9\n"), (Terminal("latin-1"), b"\xe9\n"), (Terminal("utf-8"), b"\xc3\xa9\n"), (closed, None), (None, None),
                          (Terminal(error=OSError(errno.EIO, "gone")), None), (Terminal(error=OSError(errno.ENOSPC, "full")), None)):
        monkeypatch.setattr(sys, stream, broken)
        done = []
        with pytest.raises(SystemExit) as end:
            speak([])
        assert end.value.code == 0 and done == [False] and getattr(sys, stream) is broken
        assert heard is None or broken.buffer.getvalue() == heard


def test_a_reader_that_leaves_is_still_an_error():
    with pytest.raises(BrokenPipeError):
        Screen(Terminal(error=BrokenPipeError(errno.EPIPE, "gone"))).write("a")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_files_do_not_take_the_place_of_closed_streams(tmp_path, closed):
    """What C libraries print would go into the first files that the command opens."""
    (tmp_path / "speak.py").write_text("""
import os, click
from dnnlib import cli
@click.command(cls=cli.Command)
def main():
    print("é")
    with open("out.txt", "w") as stream:
        stream.write(str(stream.fileno() > 2))
        stream.flush()
        for number in (1, 2):
            os.write(number, b"from C")
main()
""", encoding="utf-8")
    command = f"{shlex.quote(sys.executable)} speak.py {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(ROOT), PYTHONIOENCODING="ascii"), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.txt").read_text() == "True"


# ---------------------------------------------------------------------------------------------------------------------
# JSON.

@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_with_a_byte_order_mark(encoding):
    text = json.dumps({"é": [1]}, ensure_ascii=False)
    assert parse_json(text.encode(encoding)) == parse_json("\ufeff" + text) == {"é": [1]}


@pytest.mark.parametrize("bad", [b"", b"{", b"\xff", b"[" * 100000])
def test_bad_json_is_a_value_error(bad):
    with pytest.raises(ValueError):
        parse_json(bad)


# ---------------------------------------------------------------------------------------------------------------------
# Log file.

def test_logger_copies_both_streams(tmp_path, capsys):
    path = tmp_path / "log.txt"
    before = sys.stdout, sys.stderr
    with Logger(str(path)):
        print("out")
        print("err", file=sys.stderr)
        print("\r 10%", end="", file=sys.stderr)               # a redrawn progress bar
        assert path.read_text() == "out\nerr\n"                # flushed at once
    assert (sys.stdout, sys.stderr) == before
    print("after")
    assert path.read_text() == "out\nerr\n"
    captured = capsys.readouterr()
    assert captured.out == "out\nafter\n" and captured.err == "err\n\r 10%"


def test_loggers_append_and_nest(tmp_path, capsys):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    with Logger(str(first)):
        with Logger(str(second)):
            print("both")
        print("one")
    with Logger(str(first), file_mode="a"):
        print("more")
    assert (first.read_text(), second.read_text()) == ("both\none\nmore\n", "both\n")


def test_logger_survives_an_exception(tmp_path):
    before = sys.stdout
    with pytest.raises(RuntimeError):
        with Logger(str(tmp_path / "log.txt")) as logger:
            raise RuntimeError
    assert sys.stdout is before
    logger.close()
    logger.write("ignored")


@pytest.mark.parametrize("encoding", ["ascii", None])
def test_the_log_is_utf8_whatever_the_screen_is(tmp_path, monkeypatch, encoding):
    stdout = None if encoding is None else Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    with Logger(str(tmp_path / "log.txt")):
        print("é", os.fsdecode(b"\xe9"))
    assert sys.stdout is stdout and (tmp_path / "log.txt").read_bytes() == "é \\udce9\n".encode()
    assert stdout is None or stdout.buffer.getvalue() == b"\\xe9 \\udce9\n"


def test_logger_without_a_file(capsys):
    with Logger():
        print("hello")
    assert capsys.readouterr().out == "hello\n"
    assert isinstance(sys.stdout, io.TextIOBase) or hasattr(sys.stdout, "write")


class Gone(io.StringIO):
    """A stream whose reader has left, or whose terminal has."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_logger_goes_on_when_the_reader_has_gone(name, tmp_path, monkeypatch):
    asked = []
    for number in (errno.EPIPE, errno.EIO):
        monkeypatch.setattr(sys, name, Gone(number))
        with Logger(str(tmp_path / f"{number}.txt"), reader_gone=lambda: asked.append("stop")):
            print("hello", file=getattr(sys, name))
        assert (tmp_path / f"{number}.txt").read_text() == "hello\n"
    assert set(asked) == {"stop"}                               # by the pipe; a terminal says it by SIGHUP
    monkeypatch.setattr(sys, name, Gone(errno.EIO))
    with Logger(reader_gone=lambda: pytest.fail("a terminal")):
        print("hello", file=getattr(sys, name))
    monkeypatch.setattr(sys, name, Gone(errno.EPIPE))
    with Logger(str(tmp_path / "kept.txt")), pytest.raises(BrokenPipeError):
        print("hello", file=getattr(sys, name))


def test_logger_without_a_screen(tmp_path, monkeypatch):
    """As of a program that was started with closed streams."""
    monkeypatch.setattr(sys, "stdout", None)
    with Logger(str(tmp_path / "log.txt")):
        print("hello")
    assert (tmp_path / "log.txt").read_text() == "hello\n" and sys.stdout is None


@pytest.mark.parametrize("bound, files, cores", [
    (8, [], 8), (8, ["max 100000"], 8), (8, ["250000 100000"], 2), (8, ["50000 100000"], 1),
    (2, ["400000 100000"], 2), (8, ["-1", "100000"], 8),
    (8, ["300000", "100000"], 3), (8, ["?"], 8)])
def test_usable_cores(bound, files, cores, tmp_path, monkeypatch):
    """What the process is bound to, and the quota of its control group."""
    for i, text in enumerate(files):
        (tmp_path / str(i)).write_text(text)
    monkeypatch.setattr("dnnlib.util.CPU_QUOTA_FILES", [("/nowhere",), [str(tmp_path / str(i)) for i in range(len(files))]])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound)), raising=False)
    assert usable_cores() == cores


def test_naming_an_option():
    def said(message, **kwargs):
        with pytest.raises(UserError) as caught, naming("--resume", "x.pkl", **kwargs):
            raise UserError(message)
        return caught.value.message

    assert said("x.pkl: not a network file") == "--resume=x.pkl: not a network file"
    assert said("x.pkl: not a network file", file_first=True) == "x.pkl: not a network file (--resume)"
    assert said("no such file: x.pkl") == "--resume=x.pkl: no such file"
    assert said("--resume: is no file") == "--resume=x.pkl: is no file"
    assert said("--resume=x.pkl: known") == "--resume=x.pkl: known"
    assert said("--class=3: known") == "--class=3: known"


def test_is_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("dnnlib.util._download", lambda *args: (b"body", "x.pkl"))
    url = "https://example.org/x.pkl"
    assert not is_at_hand(url) and is_at_hand("x.pkl") and is_at_hand("file:///x.pkl")
    open_url(url, verbose=False)
    assert is_at_hand(url)
