"""``build-engines.sh`` as bash runs it.

There is no ``trtexec`` and no GPU here. Its refusals are the real script's; its happy path runs with stand-ins of
``trtexec`` and ``nvidia-smi`` on PATH: they write down how they were called, and a file with a plan's first bytes. So
what is checked is what the script asks of them, in which order, and what it makes of their answers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resrank.core.checkpoint import CheckpointSpec
from resrank.core.names import Model
from resrank.export.build_script import BUILD_SCRIPT, build_script
from resrank.export.manifest import Manifest, Runtime, read_manifest, write_manifest
from resrank.export.profiles import EncoderProfile, Profiles, RerankerProfile
from resrank.serving.engines.base import Precision
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_manifest import make_manifest

PROFILES = Profiles(
    encoder=(EncoderProfile.parse("1:1:8x8:16:64"), EncoderProfile.parse("1:16:64x8:256:512")),
    reranker=(RerankerProfile.parse("1:8:16x16:128:512x1:100:128"),),
)
GRAPH = b"a typed graph"
ENGINE_MODELS = (Model.ENCODER, Model.RERANKER)

TRTEXEC = r"""#!/usr/bin/env bash
printf '%s\n' "$@" >>"$CALLS"
for argument; do
  case "$argument" in
    --saveEngine=*) plan="${argument#*=}" ;;
    --timingCacheFile=*) cache="${argument#*=}" ;;
  esac
done
if [[ -n "${NO_KERNEL:-}" && "$*" != *--decomposableAttentions=* ]]; then
  echo "Error: attention is not supported by a dedicated kernel"
  exit 1
fi
if [[ -n "${FAILS_ON:-}" && "$*" == *"$FAILS_ON"* ]]; then
  printf partial >"$plan"
  echo "Error: out of memory"
  exit 1
fi
{
  printf ftrt
  head -c 20 /dev/zero
  printf "\\x${MAJOR:-0b}\x04\x00\x6a of %s" "$plan"
} >"$plan"
echo timings >>"$cache"
"""
NVIDIA_SMI = """#!/usr/bin/env bash
[[ "$*" == "--id=${EXPECTED_DEVICE:-0} --query-gpu=compute_cap --format=csv,noheader" ]] || exit 6
echo "${CAPABILITY:-8.9}"
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> CheckpointSpec:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("script") / "checkpoint")


def write_script(folder: Path, spec: CheckpointSpec, precision: Precision = Precision.BF16) -> Path:
    shapes = {model: PROFILES.all_shapes(model, spec) for model in ENGINE_MODELS}
    path = folder / BUILD_SCRIPT
    path.write_text(build_script(shapes, dict.fromkeys(ENGINE_MODELS, precision)))
    path.chmod(0o755)
    return path


@pytest.fixture
def repository(tmp_path: Path, spec: CheckpointSpec) -> Path:
    folder = tmp_path / "repository"
    for model in ENGINE_MODELS:
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "1" / "model.onnx").write_bytes(GRAPH)
    record(folder)
    write_script(folder, spec)
    return folder


def record(folder: Path, *capabilities: str) -> None:
    manifest = make_manifest(Runtime.TENSORRT, compute_capabilities=capabilities)
    digests = {"model.onnx": hashlib.sha256(GRAPH).hexdigest()}
    models = {model: facts.model_copy(update={"onnx_sha256": digests}) for model, facts in manifest.models.items()}
    write_manifest(Manifest.model_validate({**dict(manifest), "models": models}), folder)


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """The only folder on PATH beside the system's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    put_command(folder, "python3", f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    return folder


def put_command(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    (folder / name).chmod(0o755)


@pytest.fixture
def stand_ins(bin_folder: Path) -> None:
    put_command(bin_folder, "trtexec", TRTEXEC)
    put_command(bin_folder, "nvidia-smi", NVIDIA_SMI)


def run(repository: Path, bin_folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    calls = bin_folder.parent / "calls"
    calls.unlink(missing_ok=True)
    return subprocess.run(
        [repository / BUILD_SCRIPT, *arguments],
        env={
            "PATH": f"{bin_folder}:/usr/bin:/bin",
            "CALLS": str(calls),
            "HOME": os.environ.get("HOME", "/"),
            **environment,
        },
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def calls(bin_folder: Path) -> list[str]:
    path = bin_folder.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(repository: Path, bin_folder: Path, *arguments: str, **environment: str) -> str:
    before = tree(repository)
    ended = run(repository, bin_folder, *arguments, **environment)
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert tree(repository) == before
    return ended.stderr


@pytest.mark.parametrize("precision", Precision)
def test_the_script_is_sound_bash(tmp_path: Path, spec: CheckpointSpec, precision: Precision) -> None:
    script = write_script(tmp_path, spec, precision)
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("needs shellcheck, which resrank[dev] brings")
    subprocess.run([shellcheck, script], check=True)


def test_without_trtexec_nothing_is_touched(repository: Path, bin_folder: Path) -> None:
    said = refusal(repository, bin_folder)
    assert said.startswith("build-engines.sh: no trtexec found: run this inside NVIDIA's Triton container, or name")


def test_without_a_gpu_or_resrank_it_says_so(repository: Path, bin_folder: Path, stand_ins: None) -> None:
    (bin_folder / "nvidia-smi").unlink()
    assert "no nvidia-smi found: engines are built on the GPU that they are for" in refusal(repository, bin_folder)
    put_command(bin_folder, "nvidia-smi", NVIDIA_SMI)
    put_command(bin_folder, "python3", "#!/usr/bin/env bash\nexit 1\n")
    assert "bin/python3 has no resrank[triton], which serving needs too" in refusal(repository, bin_folder)


@pytest.mark.usefixtures("stand_ins")
class TestWithStandIns:
    def test_both_engines_are_built_placed_and_recorded(self, repository: Path, bin_folder: Path) -> None:
        ended = run(repository, bin_folder)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == "Built encoder/1/model.plan and reranker/1/model.plan"
        manifest = read_manifest(repository)
        for model in ENGINE_MODELS:
            content = (repository / model / "1" / "model.plan").read_bytes()
            plan = manifest.models[model].plans["8.9"]
            assert (plan.file, plan.sha256) == ("model.plan", hashlib.sha256(content).hexdigest())
            assert plan.tensorrt_version == "11.4.0.106"
        # The reranker's build had the encoder's timings.
        assert [manifest.models[model].plans["8.9"].timing_cache for model in ENGINE_MODELS] == [False, True]
        assert {path.name for path in repository.iterdir()} == {
            "encoder",
            "reranker",
            "manifest.json",
            BUILD_SCRIPT,
            "timing.sm89.cache",
        }
        assert {path.name for path in (repository / "encoder").iterdir()} == {"1"}

    def test_trtexec_is_told_every_profile(self, repository: Path, bin_folder: Path) -> None:
        run(repository, bin_folder)
        told = calls(bin_folder)
        saved = [place for place, argument in enumerate(told) if argument.startswith("--saveEngine=")]
        assert [told[place].rpartition("/")[2] for place in saved] == ["encoder.plan", "reranker.plan"]
        assert told[:2] == ["--device=0", "--onnx=encoder/1/model.onnx"]
        assert [argument for argument in told if "Shapes=" in argument or argument.startswith("--profile=")] == [
            "--profile=0",
            "--minShapes=INPUT_IDS:1x8,ATTENTION_MASK:1x8",
            "--optShapes=INPUT_IDS:1x16,ATTENTION_MASK:1x16",
            "--maxShapes=INPUT_IDS:8x64,ATTENTION_MASK:8x64",
            "--profile=1",
            "--minShapes=INPUT_IDS:1x8,ATTENTION_MASK:1x8",
            "--optShapes=INPUT_IDS:16x256,ATTENTION_MASK:16x256",
            "--maxShapes=INPUT_IDS:64x512,ATTENTION_MASK:64x512",
            "--profile=0",
            "--minShapes=INPUT_IDS:1x16,PASSAGE_POSITIONS:1x1,LAST_POSITION:1x1,CANDIDATES:1x1x32",
            "--optShapes=INPUT_IDS:8x128,PASSAGE_POSITIONS:8x100,LAST_POSITION:8x1,CANDIDATES:8x100x32",
            "--maxShapes=INPUT_IDS:16x512,PASSAGE_POSITIONS:16x128,LAST_POSITION:16x1,CANDIDATES:16x128x32",
        ]
        assert not any("decomposable" in argument or "TF32" in argument for argument in told)

    def test_fp32_is_built_exactly(self, repository: Path, bin_folder: Path, spec: CheckpointSpec) -> None:
        write_script(repository, spec, Precision.FP32)
        assert run(repository, bin_folder).returncode == 0
        told = calls(bin_folder)
        assert told.count("--noTF32") == told.count("--decomposableAttentions=*") == 2

    def test_attention_without_a_fused_kernel_is_built_all_the_same(self, repository: Path, bin_folder: Path) -> None:
        ended = run(repository, bin_folder, NO_KERNEL="1")
        assert ended.returncode == 0, ended.stderr
        assert "This GPU has no fused attention kernel for the encoder" in ended.stdout
        assert calls(bin_folder).count("--decomposableAttentions=*") == 2
        assert len([argument for argument in calls(bin_folder) if argument.startswith("--onnx=")]) == 4

    def test_what_is_built_is_built_again_only_by_force(self, repository: Path, bin_folder: Path) -> None:
        run(repository, bin_folder)
        said = refusal(repository, bin_folder)
        assert said == "build-engines.sh: encoder/1/model.plan is built already: build it again with --force\n"
        assert calls(bin_folder) == []
        ended = run(repository, bin_folder, "--force")
        assert ended.returncode == 0, ended.stderr
        assert read_manifest(repository).models[Model.ENCODER].plans["8.9"].timing_cache is True

    def test_a_build_that_fails_leaves_nothing(self, repository: Path, bin_folder: Path) -> None:
        before = tree(repository)
        ended = run(repository, bin_folder, FAILS_ON="--onnx=reranker")
        assert ended.returncode == 1
        assert ended.stderr.splitlines() == [
            "Error: out of memory",
            "build-engines.sh: trtexec could not build the reranker; its last words are above",
        ]
        after = tree(repository)
        assert after.pop("timing.sm89.cache")  # of the encoder: the next attempt is quicker
        assert after == before
        assert {path.name for path in (repository / "encoder").iterdir()} == {"1"}

    def test_a_trtexec_of_another_generation_leaves_nothing(self, repository: Path, bin_folder: Path) -> None:
        ended = run(repository, bin_folder, MAJOR="0a")
        assert ended.returncode == 1
        assert (
            "encoder: the plan was built by tensorrt 10.4.0.106, but the repository needs tensorrt 11" in ended.stderr
        )
        assert not list(repository.rglob("*.plan"))
        assert read_manifest(repository).missing_plans(Model.ENCODER) is None

    def test_graphs_that_are_not_those_exported_are_not_built(self, repository: Path, bin_folder: Path) -> None:
        (repository / "reranker" / "1" / "model.onnx").write_bytes(b"damaged on the way")
        assert "reranker/1/model.onnx: its sha256 is" in refusal(repository, bin_folder)
        assert calls(bin_folder) == []

    def test_each_gpu_builds_its_own_plan(self, repository: Path, bin_folder: Path) -> None:
        record(repository, "8.0", "8.9")
        assert run(repository, bin_folder, CAPABILITY="8.0").returncode == 0
        assert run(repository, bin_folder, "--device", "3", CAPABILITY="8.9", EXPECTED_DEVICE="3").returncode == 0
        assert "--device=3" in calls(bin_folder)
        plans = read_manifest(repository).models[Model.RERANKER].plans
        assert {capability: plan.file for capability, plan in plans.items()} == {
            "8.0": "model.sm80.plan",
            "8.9": "model.sm89.plan",
        }
        said = refusal(repository, bin_folder, CAPABILITY="9.0")
        assert "wants engines for compute capability 8.0, 8.9, but this GPU has 9.0" in said

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--fast"], "--fast is no option of this command"),
            (["--device"], "--device needs the number of a CUDA device"),
            (["--device", "first"], "--device needs the number of a CUDA device"),
            (["--device", "7"], "nvidia-smi knows no device 7"),
        ],
    )
    def test_wrong_usage_is_one_sentence(
        self, repository: Path, bin_folder: Path, arguments: list[str], named: str
    ) -> None:
        assert named in refusal(repository, bin_folder, *arguments)
