"""Boards, progress and maps: seen to change while something goes on, and complete afterwards."""

import re

from .lab import boxes, colours

HYP3, ARCHIVE = "1_hyp3_user_bucket.ipynb", "3_archive_to_s3.ipynb"


def test_the_board_changes_while_jobs_run_and_is_complete_after(lab, sandbox):
    sandbox.hyp3.processor.running = 2.0  # long enough to be looked at
    notebook = lab.open(HYP3)
    notebook.run_all()
    waiting = notebook.with_text("waiting.until_finished(")
    board = notebook.panel.locator(".recipes-board")
    board.wait_for(timeout=60_000)
    seen: list[str] = []

    def finished() -> bool:
        if (now := board.text_content()) not in seen:
            seen.append(now)
        return "3 of 3 finished" in now

    notebook.see(lambda: finished() or "running" in seen[-1])
    notebook.output(waiting).scroll_into_view_if_needed()
    lab.screenshot("running")
    notebook.see(finished)
    assert any("running" in text and "of 3 finished" in text for text in seen[:-1])
    clocks = {clock for text in seen for clock in re.findall(r"(\d+:\d\d) of at most", text)}
    assert len(clocks) > 1, "the time goes on between two changes of state"
    notebook.wait()
    notebook.part(".recipes-board")
    lab.screenshot("finished")
    rows = board.locator("tbody tr")
    assert rows.count() == 3
    states = [job["status_code"] for job in sandbox.hyp3.jobs.values()]
    assert [sum(state.lower() in text for text in rows.all_text_contents()) for state in set(states)] == [
        states.count(state) for state in set(states)
    ]
    assert all(width > 300 and height > 50 for width, height in boxes(board))
    saved = {cell.id: cell for cell in notebook.save().cells}
    shown = [output["data"].get("text/html", "") for output in saved[waiting].outputs if "data" in output]
    (on_paper,) = [html for html in shown if "recipes-board" in html]
    assert "3 of 3 finished" in on_paper


def test_progress_is_seen_and_the_map_can_be_moved(lab, sandbox):
    sandbox.traffic.fail("slow", service="s3", method="PUT", times=1000, seconds=0.3)  # else it is over at once
    notebook = lab.open(ARCHIVE)
    notebook.run_to("form")
    notebook.field("dry_run").uncheck()
    notebook.run_all()
    progress = notebook.panel.locator(".recipes-progress").first
    bar = progress.locator("progress")
    bar.wait_for(timeout=60_000)
    going = notebook.see(lambda: re.search(r"\d+ (?:of \d+ )?files", progress.text_content()))
    notebook.output(notebook.with_text("archive.transfer(")).scroll_into_view_if_needed()
    lab.screenshot("copying")
    sandbox.traffic.heal()
    notebook.wait()
    done = progress.text_content()
    assert going and bar.count() == 0 and re.search(r"\d+ files, [\d.]+ [kMG]?B in [\d.]+ s", done), done

    view = notebook.part(".recipes-map")
    outlines = view.locator("path.leaflet-interactive")
    outlines.first.wait_for()
    assert all(width > 400 and height > 200 for width, height in boxes(view))
    before = view.screenshot()
    assert colours(before) > 20
    lab.screenshot("map")
    view.locator(".leaflet-control-zoom-in").click()
    notebook.see(lambda: view.screenshot() != before)
