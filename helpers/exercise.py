"""Exercises that tell you whether you are right: `attempt` while you learn, `verify` for the folded solutions."""


def attempt(check, answer):
    """Run `check(answer)` and say in one line how it went.

    check: a function that raises AssertionError with a hint when the answer is wrong.
    answer: the learner's function; one that raises NotImplementedError counts as not started.
    """
    try:
        check(answer)
    except NotImplementedError:
        print("Not started. Replace the line `raise NotImplementedError` and run the cell again.")
    except AssertionError as hint:
        print(f"Not yet: {hint}")
    else:
        print("Correct.")


def verify(check, answer):
    """Run `check(answer)` and let a failure fail: a folded solution must be right."""
    check(answer)
    print("The solution passes the check.")
