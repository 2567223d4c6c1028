"""The files around the code agree with it: version, citation, changelog, workflow, contributing."""

import re

import pytest
import yaml
from helpers.documents import ROOT, missing_paths, missing_targets

from convnext_backbone import __version__


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version_is_cited_and_logged():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == __version__
    assert re.search(r"^## \[(.*?)\] - ", read("CHANGELOG.md"), re.M)[1] == __version__


def test_the_citation_names_the_papers_that_the_readme_names():
    citation = yaml.safe_load(read("CITATION.cff"))
    papers = {paper["identifiers"][0]["value"] for paper in citation["references"]}
    assert len(papers) == 3
    assert all(paper.partition(":")[2] in read("README.md") for paper in papers)


def test_every_job_of_the_workflow_runs_make_targets_and_nothing_else():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    jobs = workflow["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert len(runs) == len(jobs)
    assert all(run.startswith("make ") for run in runs)
    matrix = jobs["test"]["strategy"]["matrix"]
    targets = {*matrix["target"], *(row["target"] for row in matrix["include"])}
    named = {run.split()[1] for run in runs if "$" not in run.split()[1]}
    assert missing_targets("".join(f"`make {target}`\n" for target in targets | named)) == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "configs/README.md"])
def test_paths_and_targets_exist(name):
    text = read(name)
    assert missing_paths(text) == []
    assert missing_targets(text) == []


def test_contributing_is_one_screen():
    assert len(read("CONTRIBUTING.md").splitlines()) <= 60
