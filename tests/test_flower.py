"""A real federation on localhost: a SuperLink and two SuperNodes, against our simulation.

Flower does not import where warnings are errors, so all of it runs in processes of its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

from famr_jax import data, federated

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "flower"
TIMEOUT = 90.0
"""Seconds after which a client is late: far more than a round takes."""
CONFIG = {"clients": 2, "alpha": 0.5, "seed": 0, "forget": 1, "forget-part": False}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("flwr") is None, reason="needs pip install 'famr_jax[flower]'"),
]

FAULTY = """
import os, time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.clientapp import ClientApp
from forgetting.client_app import app as honest


class Faulty(ClientApp):
    def __call__(self, message, context):
        config = message.content.config_records.get("config", {})
        at = f"{context.node_config['partition-id']}:{config.get('server-round')}:"
        found = [word for word in context.run_config["faults"].split() if word.startswith(at)]
        fault = found[0].removeprefix(at) if found else None
        if fault == "raises":
            raise RuntimeError("no room on the disk")
        if fault == "dies":
            os._exit(1)
        if fault == "cut":
            Path(context.run_config["out"], "cut").touch()
            time.sleep(3600)
        if fault == "late":
            time.sleep(float(context.run_config["timeout"]) + 20)
        reply = honest(message, context)
        if fault in ("nan", "shape"):
            arrays = {k: v.numpy() for k, v in reply.content["arrays"].items()}
            name = sorted(arrays)[0]
            arrays[name] = arrays[name] * np.nan if fault == "nan" else arrays[name][..., None]
            record = ArrayRecord({k: Array(v) for k, v in arrays.items()})
            reply.content["arrays"] = record
        return reply


app = Faulty()
"""

REFUSALS = """
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from famr_jax.federated import flower, puf_special

LIKE, NONE = {"w": np.ones(2, np.float32)}, ConfigRecord()
PUF = partial(flower.PUF, LIKE, weights=partial(puf_special, rate=2.0))
GRID = SimpleNamespace(get_node_ids=lambda: [1, 2])
TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def told(call):
    try:
        call()
    except (ValueError, flower.FederationError) as error:
        print(error)


def sent(strategy, *, number=1, scale=1.0, records=1, size=3, twice=False):
    arrays = flower.to_record(LIKE)
    asked = strategy.configure_train(number, arrays, NONE, GRID)
    tree = {"w": np.float32(scale) * LIKE["w"]}
    content = {f"arrays {i}": flower.to_record(tree) for i in range(records)}
    content["metrics"] = MetricRecord({"num-examples": size})
    replies = [Message(RecordDict(content), reply_to=message) for message in asked]
    if twice:
        replies.append(Message(RecordDict(content), reply_to=asked[0]))
    strategy.aggregate_train(number, replies)


told(lambda: flower.from_record(ArrayRecord(), LIKE))
told(lambda: PUF(forget=[]))
told(lambda: list(PUF(forget=[7]).configure_train(1, flower.to_record(LIKE), NONE, GRID)))
told(lambda: sent(PUF(forget=[2], unlearn_round=3), records=2))
told(lambda: sent(PUF(forget=[2], unlearn_round=3), size=0))
told(lambda: sent(PUF(forget=[2]), scale=3e38))
strategy = PUF(forget=[2], unlearn_round=3)
sent(strategy, twice=True)
print(strategy.refused)

app = flower.client_app(None, LIKE, lambda context: (None, None), key=jax.random.key(0))
told_to = ConfigRecord({"server-round": 1})
content = RecordDict({"arrays": flower.to_record(LIKE), "config": told_to})
message = Message(content, 1, "train.unlearn")
told(lambda: app(message, Context(1, 1, {"partition-id": 0}, RecordDict(), {})))
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Federation:
    """The processes of a federation, and the project that is run on it."""

    def __init__(self, root):
        self.root, self.bin, self.running = root, Path(sys.executable).parent, []
        self.port, home = free_port(), root / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.app = root / "app"
        shutil.copytree(EXAMPLE, self.app)
        (self.app / "forgetting" / "faulty.py").write_text(FAULTY)
        project = (self.app / "pyproject.toml").read_text()
        project = project.replace("forgetting.client_app:app", "forgetting.faulty:app")
        (self.app / "pyproject.toml").write_text(project + 'faults = ""\n')
        self.env = os.environ | {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_HOME": str(home),
            "HOME": str(home),
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
        }
        link = ["--insecure", "--port", str(self.port), "--disable-runtime-dependency-installation"]
        self.start("flower-superlink", *link)
        self.await_link()
        self.nodes = [self.node(i) for i in range(2)]

    def await_link(self):
        deadline = time.monotonic() + 300
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "no SuperLink"
                time.sleep(0.5)

    def node(self, index):
        options = ["--insecure", "--superlink", f"127.0.0.1:{self.port}", "--port"]
        place = f"partition-id={index}"
        return self.start(
            "flower-supernode", *options, str(free_port()), "--node-config", place, name=place
        )

    def start(self, program, *options, name=None):
        with (self.root / f"{name or program}.log").open("w") as log:
            process = subprocess.Popen(
                [self.bin / program, *options],
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def stop(self, process):
        if process in self.running:
            self.running.remove(process)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run(self, out, *, wait=True, **config):
        """Runs the project; what it printed, and the folder of its weights."""
        out = self.root / out
        out.mkdir()
        settings = {"out": str(out), "timeout": 600.0} | config
        words = " ".join(f"{k.replace('_', '-')}={_toml(v)}" for k, v in settings.items())
        process = subprocess.Popen(
            [self.bin / "flwr", "run", str(self.app), "here", "--run-config", words, "--stream"],
            env=self.env,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.running.append(process)
        if not wait:
            return process, out
        return self.finish(process), out

    def finish(self, process):
        printed, _ = process.communicate(timeout=900)
        self.running.remove(process)
        return printed


def _toml(value):
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """All processes read the digits from one folder, prepared before they start."""
    root = tmp_path_factory.mktemp("federation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(root / "tfds"))
        data.load("digits")
        found = Federation(root)
        yield found
        for process in list(found.running):
            found.stop(process)


@pytest.fixture(scope="module")
def task():
    sys.path.insert(0, str(EXAMPLE))
    try:
        from forgetting import task
    finally:
        sys.path.remove(str(EXAMPLE))
    return task


def simulated(task, weights_of, config=CONFIG):
    """The weights after each round of the same federation in one program."""
    rows, train = task.parts(config), data.load("digits").train.batch()
    if config["forget-part"]:
        rows = federated.split_off(rows, config["forget"], rows[config["forget"]][::2])
    clients, sizes = federated.stack(train, rows), np.array([len(each) for each in rows])
    first, key = task.keys(config["seed"])
    places = [*range(2), *([config["forget"]] if config["forget-part"] else [])]
    keys = federated.client_keys(key, 2)[np.array(places)]
    params, found = jax.jit(task.MODEL.init)(first), []
    for number, weights in enumerate(weights_of(sizes), start=1):
        params, _ = federated.run_round(
            task.LEARNER, params, clients, weights, keys, number, batch_size=task.BATCH_SIZE
        )
        found.append(params)
    return found


def kept(out):
    """The weights that the server wrote after each round."""
    paths = sorted(out.glob("round-*.npz"), key=lambda path: int(path.stem.split("-")[1]))
    return [dict(np.load(path)) for path in paths]


def assert_equal(files, rounds):
    assert len(files) == len(rounds)
    for found, params in zip(files, rounds, strict=True):
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            np.testing.assert_allclose(found[jax.tree_util.keystr(path)], leaf, atol=1e-5)


def test_the_federation_forgets_as_the_simulation_does(federation, task):
    printed, out = federation.run("plain", rounds=1, recovery_rounds=1)
    gone = np.array([False, True])

    def weights(sizes):
        yield federated.fedavg(sizes)
        yield federated.puf_special(sizes, gone, rate=2.0)
        yield federated.fedavg(sizes, ~gone)

    assert len(kept(out)) == 3, printed
    assert_equal(kept(out), simulated(task, weights))


def test_a_client_forgets_a_part_and_stays(federation, task):
    settings = {"forget_part": True, "variant": "regular", "rate": 0.7, "recovery_rounds": 1}
    printed, out = federation.run("part", rounds=0, **settings)
    gone = np.array([False, False, True])

    def weights(sizes):
        yield federated.puf_regular(sizes, gone, rate=0.7)
        yield federated.fedavg(sizes, ~gone)

    assert kept(out), printed
    expected = simulated(task, weights, CONFIG | {"forget-part": True})
    assert_equal(kept(out), expected[: len(kept(out))])


def test_a_round_goes_on_without_a_faulty_client_and_stops_without_the_forgotten_one(
    federation, task
):
    faults = "0:1:nan 0:2:shape 0:3:raises 1:4:nan"
    printed, out = federation.run("faulty", rounds=3, recovery_rounds=1, faults=faults)

    def weights(sizes):
        yield from [federated.fedavg(sizes, np.array([False, True]))] * 3

    assert_equal(kept(out), simulated(task, weights))
    for words in (
        "round 1: client",
        "must be finite, got NaN or infinity",
        "must be float32 [",
        "no room on the disk",
        "which is to be forgotten, sent no usable update",
        "the weights stay, ask again",
    ):
        assert words in printed


def test_a_round_ends_without_a_client_that_is_late_or_dies(federation, task):
    faults = "0:1:late 0:2:dies 1:3:cut"
    running, out = federation.run(
        "late", wait=False, rounds=2, recovery_rounds=1, timeout=TIMEOUT, faults=faults
    )
    deadline = time.monotonic() + 600
    while not (out / "cut").exists() and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(1)
    federation.stop(federation.nodes[1])
    printed = federation.finish(running)

    def weights(sizes):
        yield from [federated.fedavg(sizes, np.array([False, True]))] * 2

    assert_equal(kept(out), simulated(task, weights))
    assert "no answer in time" in printed
    assert "round 3: client" in printed
    assert "which is to be forgotten, sent no usable update" in printed


def test_settings_of_the_example_are_those_of_the_test():
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"]["config"].items() >= CONFIG.items()


def test_refusals_say_what_is_wrong():
    command = [sys.executable, "-c", REFUSALS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = "one record of arrays and one of metrics, got 2, 1"
    size = "`num-examples` must be at least 1, got 0."
    said = [line for line in done.stdout.splitlines() if "WARNING" not in line]
    assert said == [
        """`record` must hold the arrays ["['w']"], got [].""",
        "`forget` or `part_of` must name a node, got none.",
        "round 1: [7] to forget are not there",
        f"round 1: no usable update (client 1: {records}; client 2: {records})",
        f"round 1: no usable update (client 1: {size}; client 2: {size})",
        "round 1: the sum of the updates is not finite",
        "[(1, 1, 'nobody asked for it')]",
        "`load` must give what is to be forgotten, got None.",
    ]
