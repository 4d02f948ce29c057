import shutil
import subprocess

from unifiedreward_think.checksums import file_sha256
from unifiedreward_think.provenance import commit, data_files, provenance


def git(folder, *arguments):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True)


def test_the_versions_of_what_can_change_a_number_are_named():
    versions = provenance()["versions"]
    named = {"unifiedreward-think", "torch", "transformers", "trl", "pillow", "pyarrow", "imagehash"}
    assert named <= versions.keys()


def test_the_commit_is_that_of_the_repository_and_says_if_files_were_changed(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    git(tmp_path, "tag", "v1")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert len(commit(tmp_path)) >= 7 and head.startswith(commit(tmp_path))
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path).endswith("-dirty") and head.startswith(commit(tmp_path).removesuffix("-dirty"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert commit(tmp_path) == "unknown"


def test_a_package_inside_another_project_has_no_commit_of_that_project(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "site-packages").mkdir()
    assert commit(tmp_path / "site-packages") == "unknown"


def test_a_data_file_is_known_by_its_digest_and_its_rows(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    known = {"file": str(file), "sha256": file_sha256(file)}
    assert data_files([str(file)], {str(file): 1}) == [{**known, "rows": 1}] and data_files([str(file)]) == [known]
    assert data_files(["CodeGoat24/HPD"])[0]["sha256"] == ""
