"""llama.cpp for decode_speed.py: its server over HTTP, and its library with all streams in one batch a step.

The server is a `llama-server` executable or, by the word `xllamacpp`, that of the Python package (its Linux wheel is built for AVX2).
The library is a folder with libllama, libggml and its CPU backends, such as `package/bins/linux-x64` of what
`npm pack @node-llama-cpp/linux-x64` brings: llama.cpp takes the backend made for the machine's CPU, or `cpu` names another.
"""

import ctypes
import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_uint32, c_void_p

import numpy

XLLAMACPP = """
import sys, time, xllamacpp
path, port, streams, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel, params.n_ctx = path, port, streams, context
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
print(xllamacpp.get_system_info(), file=sys.stderr)
server = xllamacpp.Server(params)
time.sleep(1e9)
"""


class Server:
    def __init__(self, program, model, context, threads, streams, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        numbers = [str(number) for number in (port, streams, streams * context, threads)]
        if program == "xllamacpp":
            command = [sys.executable, "-c", XLLAMACPP, str(model), *numbers]
        else:
            flags = ("--port", "--parallel", "--ctx-size", "--threads")
            named = [word for pair in zip(flags, numbers) for word in pair]
            command = [program, "--model", str(model), "--host", "127.0.0.1", "--threads-batch", str(threads), *named]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(log, "w"))

    def wait(self):
        while self.process.poll() is None:
            try:
                return urllib.request.urlopen(self.url + "/health").read()
            except OSError:
                time.sleep(0.2)
        raise SystemExit(pathlib.Path(self.log).read_text())

    def ask(self, prompt, tokens):
        body = dict(prompt=prompt, n_predict=tokens, temperature=0, ignore_eos=True, return_tokens=True, cache_prompt=False)
        request = urllib.request.Request(self.url + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return json.load(response)["tokens"]

    def about(self):
        """The first line in which it tells the instructions it was built for."""
        lines = pathlib.Path(self.log).read_text().splitlines()
        return next((line[line.index("CPU :") :] for line in lines if "CPU :" in line), "?")


class Params(ctypes.Structure):
    """Parameters seen as words. Their structs are returned and passed by value, and are shorter than this."""

    _fields_ = [("words", c_uint32 * 160)]


class Batch(ctypes.Structure):
    _fields_ = [("n_tokens", c_int32), ("token", POINTER(c_int32)), ("embd", c_void_p), ("pos", POINTER(c_int32)),
                ("n_seq_id", POINTER(c_int32)), ("seq_id", POINTER(POINTER(c_int32))), ("logits", POINTER(c_int8))]


class Library:
    def __init__(self, folder, threads, cpu=None):
        folder = pathlib.Path(folder).resolve()
        names = ("libggml-base*.so*", "libggml.*so*", "libllama.*so*")
        opened = [ctypes.CDLL(str(next(folder.glob(name))), ctypes.RTLD_GLOBAL) for name in names]

        def call(name, result, *types):
            function = next(getattr(library, name) for library in opened if hasattr(library, name))
            function.restype, function.argtypes = result, types
            return function

        self.silent = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)(lambda *_: None)
        call("llama_log_set", None, c_void_p, c_void_p)(ctypes.cast(self.silent, c_void_p), None)
        if cpu:
            assert call("ggml_backend_load", c_void_p, c_char_p)(str(folder / f"libggml-cpu-{cpu}.so").encode()), cpu
        else:
            call("ggml_backend_load_all_from_path", None, c_char_p)(str(folder).encode())
        self.model_params = call("llama_model_default_params", Params)
        self.context_params = call("llama_context_default_params", Params)
        self.load = call("llama_model_load_from_file", c_void_p, c_char_p, Params)
        self.context = call("llama_init_from_model", c_void_p, c_void_p, Params)
        self.batch = call("llama_batch_init", Batch, c_int32, c_int32, c_int32)
        self.batch_free = call("llama_batch_free", None, Batch)
        self.decode = call("llama_decode", c_int32, c_void_p, Batch)
        self.logits = call("llama_get_logits", POINTER(c_float), c_void_p)
        self.memory = call("llama_get_memory", c_void_p, c_void_p)
        self.clear = call("llama_memory_clear", None, c_void_p, c_bool)
        self.attach = call("llama_attach_threadpool", None, c_void_p, c_void_p, c_void_p)
        self.about = f'{call("llama_version", c_char_p)().decode()}, {call("llama_print_system_info", c_char_p)().decode()}'

        # Threads that stay from step to step, as llama.cpp's own programs have them.
        device = call("ggml_backend_dev_by_type", c_void_p, c_int32)(0)
        registry = call("ggml_backend_dev_backend_reg", c_void_p, c_void_p)(device)
        new = call("ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p)(registry, b"ggml_threadpool_new")
        params = call("ggml_threadpool_params_default", Params, c_int32)(threads)
        self.pool, self.threads = ctypes.CFUNCTYPE(c_void_p, POINTER(Params))(new)(ctypes.byref(params)), threads

    def model(self, path):
        model = self.load(str(path).encode(), self.model_params())
        assert model, path
        return model


class Streams:
    """So many answers made at once: every step one batch with the next token of each."""

    def __init__(self, library, model, vocabulary, eos, context, streams):
        self.library, self.vocabulary, self.eos, self.streams = library, vocabulary, eos, streams
        params = library.context_params()
        words = params.words  # n_ctx, n_batch, n_ubatch, n_seq_max, three more, n_threads, n_threads_batch, ...
        assert list(words[:4]) == [512, 2048, 512, 1] and list(words[7:9]) == [4, 4], "llama_context_params has another layout"
        words[0], words[1], words[3], words[7], words[8] = streams * context, streams * context, streams, library.threads, library.threads
        self.context = library.context(model, params)
        assert self.context
        library.attach(self.context, library.pool, library.pool)

    def answer(self, prompt, tokens):
        """The greedy tokens behind a prompt, for each stream; like the other sides, none that ends the text."""
        library, streams, out = self.library, range(self.streams), []
        library.clear(library.memory(self.context), True)
        batch = library.batch(len(prompt) * self.streams, 0, 1)
        wanted = [(stream, place, token, place == len(prompt) - 1) for stream in streams for place, token in enumerate(prompt)]
        while True:
            for at, (stream, place, token, last) in enumerate(wanted):
                batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, place, 1, last
                batch.seq_id[at][0] = stream
            batch.n_tokens = len(wanted)
            assert library.decode(self.context, batch) == 0
            logits = numpy.ctypeslib.as_array(library.logits(self.context), (self.streams, self.vocabulary))
            logits[:, self.eos] = -numpy.inf
            out.append(logits.argmax(1).tolist())
            if len(out) == tokens:
                library.batch_free(batch)
                return [list(stream) for stream in zip(*out)]
            wanted = [(stream, len(prompt) + len(out) - 1, out[-1][stream], True) for stream in streams]
