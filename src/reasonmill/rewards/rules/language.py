"""The language reward: thinking in the language of the question (R1 paper, section 3)."""

from collections.abc import Callable
from functools import partial

from reasonmill.protocols import Attempt
from reasonmill.transcript import final_answer, read_transcript


class LanguageReward:
    """Thinking in the language of the question."""

    def begin_measure(self, attempt: Attempt) -> Callable[[], float | None]:
        """Has what is most likely measured read where others read ahead; the function measures."""
        read_ahead = attempt.task.read_ahead
        if read_ahead is None or attempt.task.language_of(attempt.problem) is None:
            return partial(self.measure, attempt)
        text = attempt.completion.text
        wait = read_ahead(read_transcript(text).thinking or final_answer(text) or "")

        def measure() -> float | None:
            wait()
            return self.measure(attempt)

        return measure

    def measure(self, attempt: Attempt) -> float | None:
        """Share of the words of the problem's language in the thinking; None if that language is not known.

        The paper's share is not defined for thinking without words. There the answer is measured instead, as in
        general answers that need no thinking. What has no word in its thinking nor in its answer earns 0.0, so that a
        policy can't escape the measure by thinking in bare numbers or not at all.
        """
        language = attempt.task.language_of(attempt.problem)
        if language is None:
            return None
        text = attempt.completion.text
        thought = attempt.task.language_share(read_transcript(text).thinking, language)
        if thought is not None:
            return thought
        answered = attempt.task.language_share(final_answer(text) or "", language)
        return 0.0 if answered is None else answered
