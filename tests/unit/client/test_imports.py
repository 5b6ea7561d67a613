from __future__ import annotations

import subprocess
import sys

HEAVY = ["torch", "transformers", "tokenizers", "pydantic", "typer", "rich", "faiss", "onnxruntime", "openvino"]


def test_the_client_imports_nothing_beyond_the_base_install() -> None:
    program = f"import sys, resrank.client; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
