"""The scripts run with stand-ins for python, srun and gcloud, which treat words as those do."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ["gpu.sh", "slurm.sbatch", "tpu_pod.sh"]
HARD = [
    "--config",
    "my runs/rome.py:gpt-j-6b",
    "--set",
    "p=a  b",
    "q='$HOME' \"x\" \\",
    "*",
    "",
    "ü\n",
]
STANDINS = {
    # Writes down how it was called.
    "python": f"""#!{sys.executable}
import json, os, sys
json.dump({{"argv": sys.argv[1:], "env": dict(os.environ)}}, open(os.environ["RECORD"], "w"))
""",
    # Drops its own options, runs the rest.
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    # Hands the command to a shell, in the home folder, as ssh does.
    "gcloud": """#!/bin/bash
printf '%s\\n' "$@" > "$RECORD.gcloud"
for word; do [[ $word != --command=* ]] || line=${word#--command=}; done
cd "$HOME" && exec bash -c "$line"
""",
}


@pytest.fixture
def machine(tmp_path):
    """Runs a command on a machine with stand-ins; returns the process and what python was told."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "jaxedit").mkdir()
    for name, text in STANDINS.items():
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    record = tmp_path / "record.json"

    def call(command, **variables):
        record.unlink(missing_ok=True)
        base = {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "RECORD": str(record),
            "TPU_NAME": "my-pod",
            "PYTHON": "python",
        }
        done = subprocess.run(
            command,
            env={**base, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done, json.loads(record.read_text()) if record.exists() else None

    return call


def test_every_script_is_tested():
    assert sorted(path.name for path in LAUNCH.iterdir()) == sorted([*SCRIPTS, "gke.yaml"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound_shell(name):
    script = str(LAUNCH / name)
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "set -euo pipefail" in Path(script).read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_arguments_arrive_as_they_were_given(machine, name):
    done, told = machine(["bash", LAUNCH / name, "edit", *HARD])
    assert done.returncode == 0, done.stderr
    assert told["argv"] == ["-m", "jaxedit.edit", *HARD]


@pytest.mark.parametrize("name", SCRIPTS)
def test_dry_run_prints_the_command_that_would_run(machine, name):
    done, told = machine(["bash", LAUNCH / name, "--dry-run", "edit", *HARD])
    assert done.returncode == 0, done.stderr
    assert told is None
    assert done.stdout.count("\n") == 1
    done, told = machine(["bash", "-c", done.stdout])
    assert done.returncode == 0, done.stderr
    assert told["argv"] == ["-m", "jaxedit.edit", *HARD]


@pytest.mark.parametrize("name", SCRIPTS)
def test_dry_run_after_the_verb_is_for_the_verb(machine, name):
    done, told = machine(["bash", LAUNCH / name, "edit", "--dry-run"])
    assert done.returncode == 0, done.stderr
    assert told["argv"] == ["-m", "jaxedit.edit", "--dry-run"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_usage(machine, name):
    for arguments in ([], ["--dry-run"]):
        done, told = machine(["bash", LAUNCH / name, *arguments])
        assert (done.returncode, done.stdout, told) == (2, "", None)
        assert f"launch/{name}" in done.stderr
        assert "Environment:" in done.stderr
    done, _ = machine(["bash", LAUNCH / name, "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    # All of the text about the script, and nothing of the script.
    assert "Run a verb on" in done.stdout
    assert "PYTHON" in done.stdout
    assert "set -euo" not in done.stdout
    assert "#SBATCH" not in done.stdout


def test_only_runs_on_several_hosts_are_distributed(machine):
    def distributed(name):
        return machine(["bash", LAUNCH / name, "edit"])[1]["env"].get("JAXEDIT_DISTRIBUTED")

    assert [distributed(name) for name in SCRIPTS] == [None, "1", "1"]


@pytest.mark.parametrize("name", ["gpu.sh", "slurm.sbatch"])
def test_settings_of_the_user_win_on_gpus(machine, name):
    mine = {"XLA_FLAGS": "--xla_dump_to=/tmp/x", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    _, told = machine(["bash", LAUNCH / name, "edit"], **mine)
    assert told["env"]["XLA_FLAGS"].endswith(" --xla_dump_to=/tmp/x")
    assert told["env"]["XLA_FLAGS"].startswith("--xla_gpu_")
    assert told["env"]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    _, told = machine(["bash", LAUNCH / name, "edit"])
    assert told["env"]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9"


def test_tpu_pod_names_the_machine_and_hands_settings_on(machine, tmp_path):
    given = {"ZONE": "us-east5-a", "PROJECT": "p", "LIBTPU_INIT_ARGS": "--a=1 --b=2"}
    _, told = machine(["bash", LAUNCH / "tpu_pod.sh", "edit"], **given)
    assert told["env"]["LIBTPU_INIT_ARGS"] == "--a=1 --b=2"
    assert told["env"]["PWD"] == str(tmp_path / "jaxedit")
    words = (tmp_path / "record.json.gcloud").read_text().splitlines()
    assert words[:5] == ["compute", "tpus", "tpu-vm", "ssh", "my-pod"]
    assert {"--worker=all", "--zone=us-east5-a", "--project=p"} <= set(words)
    done, told = machine(["bash", LAUNCH / "tpu_pod.sh", "edit"], TPU_NAME="")
    assert done.returncode != 0
    assert "TPU_NAME" in done.stderr
    assert told is None


def test_slurm_gives_one_process_to_each_gpu(machine):
    """As jax.distributed wants it: all GPUs of a node visible to each process, none bound."""
    text = (LAUNCH / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE))
    assert options["gres"] == f"gpu:{options['ntasks-per-node']}"
    assert not {"gpus-per-task", "gpu-bind"} & set(options)
    # sbatch stops reading options at the first line that is not a comment.
    assert text.index("\n#SBATCH") == text.index("\n")
    done, _ = machine(["bash", LAUNCH / "slurm.sbatch", "--dry-run", "x"], SLURM_CPUS_PER_TASK="7")
    words = shlex.split(done.stdout)
    srun = words[words.index("srun") : words.index("python")]
    assert "--cpus-per-task=7" in srun


def test_xla_knows_the_flags():
    """XLA ends the process at an unknown flag, and flags come and go with its versions."""
    text = "".join(path.read_text() for path in LAUNCH.iterdir())
    flags = set(re.findall(r"--xla_[a-z_]+=\w+", text))
    assert flags
    code = "import jax; jax.numpy.zeros(1)"
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


JOBSETS = {doc["metadata"]["name"]: doc for doc in yaml.safe_load_all((LAUNCH / "gke.yaml").open())}


@pytest.fixture(params=sorted(JOBSETS))
def jobset(request):
    return JOBSETS[request.param]


def pods(jobset):
    [replicated] = jobset["spec"]["replicatedJobs"]
    return (
        replicated,
        replicated["template"]["spec"],
        replicated["template"]["spec"]["template"]["spec"],
    )


def variables(container):
    return {entry["name"]: entry for entry in container["env"]}


def test_jobsets_have_what_kubernetes_asks_for(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    replicated, job, pod = pods(jobset)
    assert replicated["name"]
    assert replicated["replicas"] >= 1
    # One pod that fails ends the job, and so restarts the set: the others would wait for it.
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert job["completions"] == job["parallelism"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] >= 1
    [container] = pod["containers"]
    assert container["image"]
    assert container["command"][:2] == ["python", "-m"]
    assert re.fullmatch(r"jaxedit\.\w+", container["command"][2])
    assert container["args"][0] == "import"
    assert all(isinstance(word, str) for word in [*container["command"], *container["args"]])
    # Kubernetes refuses a number as the value of a variable.
    assert all(isinstance(entry.get("value", ""), str) for entry in container["env"])
    assert variables(container)["JAXEDIT_DISTRIBUTED"]["value"] == "1"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_kubectl_can_choose_one_accelerator():
    chosen = {doc["metadata"]["labels"]["accelerator"]: name for name, doc in JOBSETS.items()}
    assert chosen == {"tpu": "jaxedit-tpu", "gpu": "jaxedit-gpu"}


def test_a_tpu_slice_has_a_pod_for_each_host():
    _, job, pod = pods(JOBSETS["jaxedit-tpu"])
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(side) for side in topology.split("x"))
    [container] = pod["containers"]
    assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips


def test_gpu_pods_find_the_first_of_them():
    jobset = JOBSETS["jaxedit-gpu"]
    replicated, job, pod = pods(jobset)
    [container] = pod["containers"]
    told = variables(container)
    name = jobset["metadata"]["name"]
    host, port = told["JAXEDIT_COORDINATOR"]["value"].split(":")
    assert host == f"{name}-{replicated['name']}-0-0.{name}"
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]
    assert (
        int(told["JAXEDIT_NUM_PROCESSES"]["value"]) == job["parallelism"] * replicated["replicas"]
    )
    field = told["JAXEDIT_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert job["completionMode"] == "Indexed"
