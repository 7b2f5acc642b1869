"""The stand-in of the hub answers the hub client as the hub does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import hub_stand_in
from huggingface_hub import HfApi, create_repo, hf_hub_download, list_repo_files
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from tiny import tiny_model
from transformers import AutoModelForCausalLM


def test_what_is_pushed_is_there_and_can_be_loaded(tmp_path: Path):
    model = tiny_model("llama")
    with hub_stand_in() as hub:
        assert model.push_to_hub("someone/llama", commit_message="First").repo_url.repo_id == "someone/llama"
        assert {"config.json", "model.safetensors"} <= hub.files("someone/llama").keys()
        assert hub.commits == [("someone/llama", "First")]
        assert set(list_repo_files("someone/llama")) == set(hub.files("someone/llama"))
        loaded = AutoModelForCausalLM.from_pretrained("someone/llama", cache_dir=tmp_path)
        assert (loaded.lm_head.weight == model.lm_head.weight).all()
        assert HfApi().model_info("someone/llama").private is False


@pytest.mark.slow
def test_a_subprocess_is_led_to_it():
    program = "import huggingface_hub as h; h.create_repo('name', private=True); print(h.whoami()['name'])"
    with hub_stand_in() as hub:
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "someone"
        assert hub.private == {"someone/name": True}


def test_what_is_not_there_is_not_found_and_failures_can_be_asked_for(tmp_path: Path):
    with hub_stand_in() as hub:
        with pytest.raises(RepositoryNotFoundError):
            HfApi().model_info("someone/nothing")
        create_repo("someone/one")
        create_repo("someone/one", exist_ok=True)
        with pytest.raises(HfHubHTTPError):
            create_repo("someone/one")
        (tmp_path / "a.txt").write_text("a")
        hub.failing = "/commit/"
        with pytest.raises(HfHubHTTPError, match="403"):
            HfApi().upload_folder(repo_id="someone/one", folder_path=tmp_path)
        hub.failing = None
        HfApi().upload_folder(repo_id="someone/one", folder_path=tmp_path)
        assert hub.files("someone/one") == {"a.txt": b"a"}
        assert Path(hf_hub_download("someone/one", "a.txt", cache_dir=tmp_path)).read_text() == "a"
