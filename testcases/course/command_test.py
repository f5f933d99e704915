"""The `course` command: what a student may do, and what is never lost."""

SOLVED = "return x * 2"
UNSOLVED = 'raise NotImplementedError("task 1.1: double the number")'


def backups(toy):
    return sorted((toy.root / ".course" / "backups").glob("*/optimizer.py"))


def test_status_of_a_fresh_course_and_after_a_check(toy, edit):
    fresh = toy.course("status")
    assert fresh.status == 0
    assert "not started" in fresh.out
    assert "Next: lesson 01, Toy." in fresh.out
    edit(toy.skeleton, UNSOLVED, SOLVED)
    assert "not checked yet" in toy.course("status").out
    check = toy.course("check", "1")
    assert check.status == 1
    assert "40 of 100 points" in check.out
    assert "Next: task 1.2" in check.out
    status = toy.course()
    assert "40/100" in status.out, status.text
    assert "in progress" in status.out
    toy.skeleton.write_text(toy.skeleton.read_text() + "# a remark\n")
    assert "changed since the last check" in toy.course("status").out


def test_basic_tests_alone_do_not_finish_a_lesson(toy):
    assert toy.course("adopt", "1").status == 0
    basic = toy.course("check", "1", "--basic")
    assert basic.status == 0
    assert "`course check 01` runs advanced_test.py too" in basic.out
    assert "only some of the tests were run" in toy.course("status").out
    assert "Done. `course diff 01`" in toy.course("check", "1").out
    assert "Every lesson is done." in toy.course("status").out


def test_diff_waits_for_the_tests_unless_told_to_spoil(toy, edit):
    refused = toy.course("diff", "1")
    assert refused.status == 2
    assert SOLVED not in refused.text
    spoiled = toy.course("diff", "1", "--spoil")
    assert spoiled.status == 0
    assert f"+    {SOLVED}" in spoiled.out
    assert "BEGIN SOLUTION" not in spoiled.out
    toy.course("adopt", "1")
    edit(toy.skeleton, SOLVED, "return x + x")
    assert toy.course("check", "1").status == 0
    shown = toy.course("diff", "1")
    assert "-    return x + x" in shown.out
    assert f"+    {SOLVED}" in shown.out
    toy.skeleton.write_text(toy.skeleton.read_text() + "# changed after the check\n")
    assert toy.course("diff", "1").status == 2


def test_adopt_and_reset_never_lose_what_was_written(toy, edit):
    edit(toy.skeleton, UNSOLVED, "return 'mine'")
    mine = toy.skeleton.read_text()
    for verb in ("adopt", "reset"):
        refused = toy.course(verb, "1")
        assert refused.status == 2
        assert "You have edited optimizer.py" in refused.err
        assert toy.skeleton.read_text() == mine
        done = toy.course(verb, "1", "--force")
        assert done.status == 0, done.text
        assert backups(toy)[-1].read_text() == mine
        assert str(backups(toy)[-1].parent.relative_to(toy.root)) in done.out
        toy.skeleton.write_text(mine)
    assert len(backups(toy)) == 2


def test_adopt_then_reset_gives_the_solution_then_the_skeleton(toy):
    skeleton = toy.skeleton.read_text()
    toy.course("adopt", "1")
    assert SOLVED in toy.skeleton.read_text()
    assert "BEGIN SOLUTION" not in toy.skeleton.read_text()
    toy.course("reset", "1", "--force")
    assert toy.skeleton.read_text() == skeleton
    assert "Nothing to do" in toy.course("reset", "1").out


def test_hint_is_in_the_language_that_was_asked_for(toy):
    assert "Twice as much." in toy.course("hint", "1.1").out
    assert "两倍。" in toy.course("hint", "1.1", "--lang", "zh").out
    assert "两倍。" in toy.course("--lang=zh", "hint", "1.1").out


def test_every_message_has_its_chinese(toy):
    for arguments in (["status"], ["check", "1"], ["hint", "9"], ["check", "toi"], ["diff", "1"], ["--help"]):
        text = toy.course(*arguments, "--lang", "zh").text
        assert any("\u4e00" <= char <= "\u9fff" for char in text), arguments


def test_wrong_names_are_one_sentence_and_status_2(toy):
    for arguments, says in (
        (["check", "lesson01_tyo"], "Did you mean lesson01_toy?"),
        (["hint", "1.7"], "1.1, 1.2"),
        (["reset", "99"], "`course status` lists them"),
        (["status", "--lang", "fr"], "language must be one of en, zh, got 'fr'"),
        (["check", "1", "--impl", "nowhere"], "--impl nowhere: no such folder"),
    ):
        result = toy.course(*arguments)
        assert result.status in (2, 4), arguments
        assert says in result.err
        assert "Traceback" not in result.text


def test_learn_shows_the_map_the_check_and_what_to_do(toy):
    result = toy.course("learn")
    assert result.status == 0
    for text in ("not started", "TODO  1.1  optimizer.py:7", "To go on:", "README.md"):
        assert text in result.out


def test_a_copy_without_solutions_still_checks_and_says_what_is_missing(toy):
    import shutil

    shutil.rmtree(toy.root / "solutions")
    assert toy.course("status").status == 0
    assert "0 of 100 points" in toy.course("check", "1").out
    result = toy.course("adopt", "1")
    assert result.status == 2
    assert "is not in this copy of the course" in result.err


def test_doctor_finds_nothing_bad_here(toy):
    result = toy.course("doctor")
    assert result.status == 0, result.text
    for what in ("Python", "torch", "CUDA", "repeatable", "disk"):
        assert what in result.out
    assert "bit for bit" in result.out
