"""Every exercise of every notebook can be solved as its folded solution says, and what the text claims is true."""

import re

import pytest

from helpers import objectstore

from ..conftest import notebook_files

#: "2. **Title.** text <details>...solution...</details>"
EXERCISE = re.compile(
    r"^(\d+)\. \*\*(.+?)[.?]\*\*(.*?)<details><summary>Solution</summary>\n(.*?)</details>$", re.DOTALL | re.MULTILINE
)
CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: Parameters of a run that is quick, and leaves what the exercises need.
RUN = {
    "3_archive_to_s3": {"dry_run": False},
    "4_archive_to_disk": {"dry_run": False},
    "5_safe_to_zarr": {"overviews": False},
    "6_stac_ingest": {"take_in": False, "break_things": False},
}
#: The exercises in which something is broken: each is recognised, explained and repaired.
FAULTS = {
    "0_start_here": "A service that is down",
    "1_hyp3_user_bucket": "A missing policy|An expired token",
    "2_hook_data_harvest": "One that cannot work",
    "3_archive_to_s3": "A damaged file",
    "4_archive_to_disk": "Damaged files",
    "5_safe_to_zarr": "A conversion that fails",
    "6_stac_ingest": "A poison item",
}
FILES = [pytest.param(path, id=path.stem) for path in notebook_files()]


def exercises(text: str) -> dict[str, str]:
    """Solutions by title."""
    found = EXERCISE.findall(text[text.index("## Your turn") : text.index("## Summary")])
    assert [int(number) for number, *_ in found] == list(range(1, len(found) + 1))
    return {title: solution for _, title, _, solution in found}


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES)
def test_each_solution_works_and_what_it_claims_is_true(path, sandbox, open_notebook, request, monkeypatch):
    if path.stem[0] == "5":
        monkeypatch.setenv("PREFECT_API_URL", request.getfixturevalue("prefect")["PREFECT_API_URL"])
    session = open_notebook(path.name, **RUN.get(path.stem, {})).run()
    found = exercises(session.text)
    assert set(found) == set(CLAIMS[path.stem]), "each exercise has a claim that is tested, and each claim an exercise"
    assert session.text.count("<details>") == len(found) >= 3
    for title, solution in found.items():
        for code in CODE.findall(solution):
            session.execute(code)
        assert CLAIMS[path.stem][title](session, sandbox), title


@pytest.mark.parametrize("path", FILES)
def test_faults_are_recognised_explained_and_repaired(path, open_notebook):
    found = exercises(open_notebook(path.name).text)
    faults = FAULTS[path.stem].split("|")
    assert set(faults) <= set(found)
    for title in faults:
        parts = re.split(r"^\*(Recognise|Explain|Repair)\*: ", found[title], flags=re.MULTILINE)
        assert parts[1::2] == ["Recognise", "Explain", "Repair"], title
        recognise, explain, repair = parts[2::2]
        assert CODE.search(recognise) and CODE.search(repair), f"{title}: shown, and proved"
        assert len(explain.split()) > 20, title


# --- what is true afterwards: in the world where it can be, else of what the text says ---


def keys(sandbox, bucket: str) -> list[str]:
    return list(objectstore.objects(sandbox._s3_client("sandbox-user"), bucket, ""))


def made_to_move(session, sandbox) -> bool:
    (job,) = sandbox.hyp3.jobs.values()
    return job["name"] == "look-at-the-chain" and session["moving"][0].state in ("at work", "there")


def looked_into(session, sandbox) -> bool:
    folder, bucket = session["own"][-2:]
    return (folder.state, bucket.state) == ("there", "nothing yet") and "files" in folder.facts


def taken_down(session, sandbox) -> bool:
    down, up = (
        {link.place: link for link in session[name] if link.place in ("HyP3 jobs", "Hook orders")}
        for name in ("down", "up")
    )
    assert sandbox.traffic.faults == []
    assert "503" in down["HyP3 jobs"].facts and down["Hook orders"] == up["Hook orders"]
    return down["HyP3 jobs"].state == "no answer" and up["HyP3 jobs"].state in ("at work", "there")


def four_problems(session, sandbox) -> bool:
    with pytest.raises(Exception, match="4 problems"):
        session["recipe"].check([session["bad"]])
    return True


def policy_repaired(session, sandbox) -> bool:
    (lost,), (repaired,) = session["lost"], session["repaired"]
    assert lost.failed() and lost.files is None and lost.logs is None
    written = keys(sandbox, session["closed"])
    assert repaired.succeeded() and repaired.job_id != lost.job_id
    return {file["s3"]["key"] for file in repaired.files} <= set(written)


def token_renewed(session, sandbox) -> bool:
    assert "401" in session["expired"] and "Signature has expired" in session["expired"]
    assert len(sandbox.traffic.received("hyp3", "POST", "^/jobs$")) == 4  # validated, submitted, lost, repaired
    return [job.job_id for job in session["same"]] == [job.job_id for job in session["batch"]]


def states_of(items: list[dict]) -> list[str]:
    return sorted(item["Status"].lower() for item in items)


def mended_order(session, sandbox) -> bool:
    assert states_of(session["mixed"]) == ["completed", "failed"]
    assert len(sandbox.hook.orders) == 6  # the notebook's, and one for each of the exercises' run ids
    return states_of(session["mended"]) == ["completed"]


def archived_twice(session, sandbox) -> bool:
    assert len(session["first"].new) > 20 and session["second"].new == []
    return session["second"].counts()["present"] == len(session["first"].wanted)


def repaired_in_bucket(session, sandbox) -> bool:
    victim, place = session["victim"], session["place"]
    assert [(file.name, file.state) for file in session["repair"].new] == [(victim.name, "changed")]
    assert {check.verdict for check in session["repaired"]} == {"ok"}
    return (
        objectstore.objects(place.client, place.bucket, place.key(victim.name))[place.key(victim.name)] == victim.size
    )


def contested(session, sandbox) -> bool:
    return len(session["contested"]) > 0 and all(row["state"] == "clashing" for row in session["contested"])


def repaired_on_disk(session, sandbox) -> bool:
    cut, bitten = session["cut"], session["bitten"]
    assert [check.target for check in session["bad"] if "delete it" in check.verdict] == [str(bitten)]
    assert {file.name for file in session["repair"].new} == {cut.name, bitten.name}
    assert {check.verdict for check in session["repaired"]} == {"ok"}
    sizes = {file.name: file.size for file in session["repair"].new}
    return all(path.stat().st_size == sizes[path.name] for path in (cut, bitten))


def unpacked(session, sandbox) -> bool:
    return any(path.is_dir() for path in session["place"].iterdir())


def published(sandbox, collection: str) -> list[str]:
    return sorted(sandbox.catalog.items.get(f"sandboxuser_{collection}", {}))


def both_polarisations(session, sandbox) -> bool:
    vv, vh = (session["grd"].sel(polarization=name).mean() for name in ("VV", "VH"))
    return session["row"]["outcome"] == "converted" and bool(vh < vv)


def two_of_three(session, sandbox) -> bool:
    outcomes = [row["outcome"] for row in session["rows"]]
    assert sorted(outcomes) == ["converted", "converted", "failed"]
    staged = [key for key in keys_at_rs_python(sandbox) if "-staging/" in key]
    return staged == [] and len(published(sandbox, "sentinel-zarr")) == 4  # the example, Sentinel-1, and two tiles


def keys_at_rs_python(sandbox) -> list[str]:
    return list(objectstore.objects(sandbox._s3_client("rs-python"), "rspy-products", ""))


def converted_here_once(session, sandbox) -> bool:
    return (session["local"].outcome, session["here"][0].outcome) == ("converted", "present")


def conversion_mended(session, sandbox) -> bool:
    failed, mended = session["failed_row"], session["mended_row"]
    assert failed["outcome"] == "failed" and failed["reason"]
    assert sum(change.state == "FAILED" or "fail" in change.state for change in session["seen"]) >= 1
    return mended["outcome"] == "converted" and len(published(sandbox, "exercise")) == 1


def refused_note(session, sandbox) -> bool:
    return session["path"].read_text() == "-10" and "note" in session["catalog"].kinds()


def nothing_published(session, sandbox) -> bool:
    number = session["sqs"].get_queue_attributes(
        QueueUrl=session["queue_url"], AttributeNames=["ApproximateNumberOfMessages"]
    )
    return number["Attributes"]["ApproximateNumberOfMessages"] == "0"


def one_of_two_loaded(session, sandbox) -> bool:
    return list(session["loader"].reasons) == ["bad"]


def poison_repaired(session, sandbox) -> bool:
    assert [about for letter in session["poisoned"] for about in letter.about] == [
        f"poisoned/{session['items'][0].id}-poison"
    ]
    assert (session["neighbours"], session["loaded"], session["letters_left"]) == (2, 3, [])
    with session["catalog"].connect(session["settings"]) as store:
        return "poisoned" not in store.collections()


CLAIMS = {
    "0_start_here": {
        "Make the chain move": made_to_move,
        "A place of your own": looked_into,
        "A service that is down": taken_down,
    },
    "1_hyp3_user_bucket": {
        "A job that cannot work": four_problems,
        "A missing policy": policy_repaired,
        "Somebody else's statement": lambda session, _: len(session["both"]["Statement"]) == 3,
        "An expired token": token_renewed,
    },
    "2_hook_data_harvest": {
        "Three at once": lambda session, _: states_of(session["three"]) == ["completed"] * 3,
        "Your own bucket": lambda session, _: len(session["delivered"]) > 30,
        "Another workflow": lambda session, _: "MSIL2A" in session["corrected"][0]["ProcessedName"],
        "One that cannot work": mended_order,
    },
    "3_archive_to_s3": {
        "Twice": archived_twice,
        "A damaged file": repaired_in_bucket,
        "Two of a kind": contested,
    },
    "4_archive_to_disk": {
        "Twice": archived_twice,
        "Damaged files": repaired_on_disk,
        "Whole products": unpacked,
    },
    "5_safe_to_zarr": {
        "Both polarisations": both_polarisations,
        "One bad product in three": two_of_three,
        "Without any service": converted_here_once,
        "A conversion that fails": conversion_mended,
    },
    "6_stac_ingest": {
        "A kind of your own": refused_note,
        "Fail early": nothing_published,
        "As a Lambda function": one_of_two_loaded,
        "A poison item": poison_repaired,
    },
}
