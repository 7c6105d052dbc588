"""Which option a model's words name: one rule for every task that has no rule of its own.

In this order: the whole answer is one letter, however it is set off; the last statement that says which the answer is;
the one letter of a list that is called right; a letter that begins the answer; one that ends it, as a clause of its own
or after a word such as "so"; a letter in brackets or after "option"; a capital that begins a clause or follows such a
word; else the only option whose words occur, or in which the answer's words do. What is denied ("not A", "B is
wrong") or asked ("is it A?") does not count, nor does a letter that belongs to another word ("vitamin B", "5 A", "an
A") or "A" as an article; two letters of the same rank are no answer.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import unescape

from llava_s2.eval.openai_servers import without_reasoning
from llava_s2.eval.schema import LETTERS

RULE = "letters by llava-s2's rule 3 (eval/letters.py)"

_CONFLICT = "conflict"
# After NFKC, which makes half-width ones of the full-width brackets and signs.
_BRACKETS = str.maketrans("[{<【「『《〈", "((((((((") | str.maketrans("]}>】」』》〉", "))))))))")
_ENCLOSED = {first + n: letter for first in (0x1F150, 0x1F170) for n, letter in enumerate(LETTERS)}  # NFKC leaves these
_QUOTES = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x3014: "(", 0x3015: ")"}

# A letter by itself: no part of a word, an abbreviation or a compound.
_ALONE = (
    r"(?<![A-Za-z0-9&])(?<!&\s)(?<![A-Za-z]')(?<![A-Za-z]\.)(?<![A-Za-z]-)([A-Za-z])"
    r"(?![A-Za-z0-9]|\s?&|'[A-Za-z]|\.[A-Za-z](?![a-z])|-[A-Za-z0-9])"
)
_OR = r"(?:[,/&+、和或и]|や|또는|\b(?:or|and|vs\.?|versus|through|to|then|und|oder|et|ou|y|o|hoặc)(?!\w))"
_JOINED = re.compile(rf"{_ALONE}[()\s]*(?:{_OR}[()\s]*)+(?i:(?:maybe|perhaps|possibly|option|choice)\s+)*\(?{_ALONE}")

_FILLER = (
    "is|are|was|be|would|should|must|will|could|to|the|my|final|correct|right|best|most|likely|probably|clearly|"
    "definitely|actually|certainly|therefore|thus|option|choice|letter|labeled|labelled|following|one|given|i|think|with|for|number"
)
_STATED = re.compile(
    r"(?i:(?<![a-z])(?:answer(?:'?s|ing)?|ans|(?:option|choice)(?=[\"']\s*[:=])|solution|(?:correct|right|best|final|my)\s+(?:option|choice|letter|one)|"
    r"(?:i|we)(?:'d|'ll|\s+would|\s+will)?\s+(?:go\s+with|chose)|choos(?:e|ing)|pick(?:ing)?|select(?:ed|ing)?|"
    rf"i\s+say|(?:it|this|that)(?:'?s|\s+is))(?![a-z])|(?<=[.!?-]\s)(?i:(?:(?:no\s+)?(?:no|wait|sorry|correction)[,:]\s*)+)|答案|选项?|選項?|答え|정답)"
    rf"(?:[^A-Za-z0-9.!?]|(?i:(?<![A-Za-z])(?:{_FILLER})(?![A-Za-z]))|[是为為选選]|项|項)*{_ALONE}"
)
# What stands before a letter that names an option: the beginning of a clause, such a word, or a word of another script.
# Not any other word, nor a number: "person B", "an A", "5 A".
_LEAD = (
    r"(?:(?:^|[.,;:!?%)=/>\n\u2013\u2014-]|[^\x00-\x7F\s°]\w{0,9}(?:\s+[a-z]{1,3}(?=\s))?)[\s\"'(]*|(?i:(?<![a-z])(?:so|then|hence|thus|therefore|ergo|\w+ly|"
    r"now|that|is|be|it's|was|ist|est|es|er|la|lautet|adalah|cevap|say|think|guess|get|(?:go(?:ing)?|left|us)\s+with|for|"
    r"(?<!such\s)as|(?:looks?|seems?|appears?)(?:\s+like)?|leaves|leaving|points\s+to|towards?|mark|tick|circle|just|but|matches|maybe|perhaps|"
    r"sure|yes|okay|assistant|answer(?:\s+says)?|antwort|opt|option|choice|letter|statement)\s+[\"']?))\(?"
)
_LED = re.compile(_LEAD + _ALONE)
_IS_ANSWER = re.compile(
    rf"{_LEAD}{_ALONE}\)?[\"']?\s*(?i:it\s+is(?!\s+\w)|(?:is|would\s+be|should\s+be|must\s+be|seems|looks)\s+"
    r"(?:\w+\s+){0,2}?(?:correct|right|best|better|true|answer)(?![a-z]))"
)
_LEADING = re.compile(rf"^[\W_]*{_ALONE}(?=\s*$|[^\S\n]*[^\s\w'\"(&]|[^\S\n]*\n|\)|[\"'])")
_POSSIBLE = re.compile(rf"(?i:(?<![a-z])(?:could|might|may)\s+(?:\w+\s+)?be\s+(?:\w+\s+)?)\(?{_ALONE}")
_BRACKETED = re.compile(rf"\({_ALONE}\)|(?i:(?:option|choice|letter)s?)[\s:]*[\"'(]?{_ALONE}")

_SAID = re.compile(r"(?i)^\W*(?:(?:the\s+)?(?:correct\s+|right\s+|final\s+)?answer(?:\s+is)?|it\s+is|it's)[\s:]+")
# "Q: which? A: B", but not "Q: which? A: red B: blue"
_QUESTION = re.compile(r"(?s)^Q[:.].*[?\n]\s*A[:.](?=\W*[A-Za-z](?![A-Za-z0-9'])|(?!.*(?<![A-Za-z])B[.:)]))")
_ASKED = re.compile(
    r"(?i)(?:(?<=[.!?\n])|^)\W{0,4}(?:is|are|was|were|could|can|would|should|might|may|does|do|did|which|what|why|how|where|who)\s[^.!?\n]*\?"
)
_LABELLED_A = re.compile(  # "A: unknown" is an answer without a letter
    r"(?i)^\W*A[:.]\s*(?=(?:i\s+(?:don't|do\s+not|can't|can\s*not|am\s+not)|i'm\s+(?:not|sorry)|unknown|unclear|unsure|not\s|cannot|can't|none|"
    r"impossible|insufficient|no\s+(?:idea|answer)|sorry)(?![a-z]))"
)
_LISTED = re.compile(r"(?s)(?:^|[(\s\"])A\"?[.):]\s*\S.*[(\s\"]B\"?[.):]\s*\S")
_LETTER_LIST = r"\(?[A-Za-z]\)?(?:\s*(?:,|or|nor|and)\s*\(?[A-Z]\)?)*(?![A-Za-z'])"
_WRONG = (
    r"(?:\s+(?:clearly|also|all|both|definitely))?"
    r"(?:n't|not|\s+(?:be\s+)?(?:not|wrong|incorrect|false|(?:ruled\s+)?out|eliminated|impossible))"
)
_DENIED = (
    re.compile(
        r"(?i:\b(?:I\s+(?:(?:can|would|could)\s+)?)?(?:don't\s+think(?:\s+it(?:'s|\s+is))?|not|isn't|aren't|cannot|can't|never|neither|none\s+of|except|eliminat(?:e|es|ing)|exclud(?:e|es|ing)|dismiss(?:ing)?|discard(?:ing)?|rather\s+than|"
        r"instead\s+of|unlike|over|than|rul(?:e|ed|ing)\s+out)\s+(?:(?:actually|really|necessarily|likely|be)\s+)?(?:the\s+)?(?:(?:option|choice|answer|point)s?\s+)?)"
        r"\(?[A-Za-z]\)?(?:(?:\s*,\s*\(?[A-Z]\)?)*,?\s*(?:or|nor|and)\s*\(?[A-Z]\)?)*(?![A-Za-z'])"
    ),
    # "A is red, which is wrong"
    re.compile(
        r"(?<![A-Za-z0-9'])\(?[A-Z]\)?(?:\s+[a-z]+){1,4},?\s+(?:which|that)\s+(?:is|was)\s*"
        r"(?:(?:n't|not)\s+(?:correct|right|true|what|the\s+case|seen|shown|visible|possible)|wrong|incorrect|false)(?![a-z])"
    ),
    # "B, C is wrong" denies C alone, "B, C are wrong" both.
    re.compile(
        r"(?i:(?:(?:option|choice)s?\s+)?)(?<![A-Za-z0-9'])(?:"
        rf"\(?[A-Za-z][).]?(?:\s*\([^()]*\))?(?i:\s+(?:is|was|can|could|would|must|seems|looks){_WRONG})|{_LETTER_LIST}(?i:\s+(?:are|were|can|could|would|must|seem|look){_WRONG}))\b"
    ),
    re.compile(r"(?<![A-Za-z0-9'])\(?[A-Za-z]\)?\s*(?:\?\s*(?i:no|nope|wrong)\b|[.:]?\s*[✗✘❌])"),
    re.compile(r"(?m)^\s*[✗✘❌]\s*\(?[A-Za-z](?![A-Za-z])"),
    re.compile(rf"(?:不是|不选|不選|并非|並非|排除)\s*{_LETTER_LIST}"),
    re.compile(rf"{_LETTER_LIST}\s*(?:是?错|是?錯|不对|不對|不正[确確]|不是|ではな|[가이]?\s*아니)"),
    re.compile(r"(?<![A-Za-z0-9])[A-Za-z](?:\++|#)(?![\w+#])"),  # "A+", "C#"
    re.compile(r"(?i:(?<![a-z])n\s*/\s*a(?![a-z])|(?<![a-z])n\.\s?a\.?(?![a-z]))"),
)
_RIGHT, _NOT_RIGHT = {"yes", "right", "correct", "true"}, {"no", "wrong", "incorrect", "false"}
_VERDICT = re.compile(  # "A: wrong", or "A. The cup is red. - Incorrect"
    r"(?<![A-Za-z0-9'])\(?([A-Z])\)?\s*[.:→⇒=\u2013\u2014-]*\s*(?:[^\n]*?[(→\u2013\u2014-]\s*)??\(?"
    rf"(?i:({'|'.join(_RIGHT | _NOT_RIGHT)}))(?![A-Za-z])"
)
_IDEOGRAPHS = "぀-ヿ㐀-鿿가-힣"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+(?:[.'/:°%-]+[^\W_{_IDEOGRAPHS}]*)*|[^\s\w]")
_AFTER_NAME = ("and", "or", "nor", "is", "are", "was", "were", "than")
_NEGATIONS = re.compile(
    r"\b(?:不|没|無|无|not|no|never|neither|nor|cannot|without|isn't|aren't|doesn't|don't|can't|wasn't)\b"
)
_BEFORE_WORD = re.compile(r"[^\S\n]+[A-Za-z0-9]")
_AFTER_LETTER = re.compile(
    r"\s+(?i:is|are|it|was|fits|matches|remains|then|I|because|since|as|due|seems|looks|appears|shows|describes|depicts|represents|"
    r"contains|has|corresponds|best|correctly|accurately|would|should|must|can|could|will|for|but|or|and|than|if|in|on|from|"
    r"given|based|according|only|alone|maybe|probably)\b|\s+[^\w\s]|[^\S\n]*\n"
)


def read_option(text: str, options: Sequence[str], others: Iterable[str] = ()) -> str | None:
    """The option that an answer names, or None if it names none or more than one.

    Args:
        text: the model's answer.
        options: by letter, A first.
        others: more wordings of options, which have no letter.

    Returns:
        One of ``options`` or of ``others``.
    """
    text = without_reasoning(text)
    wordings = (*options, *others)
    for said in (text.strip(), _SAID.sub("", text).strip()):
        exact = [option for option in wordings if option.strip() in (said, said.removesuffix("."))]
        if exact and said not in LETTERS[: len(options)]:
            return exact[0]
    whole = re.fullmatch(r"(?s)\W*([A-Za-z])[.):]\s*(.+?)\.?", text.strip())
    if whole and whole[2] in (o.rstrip(".") for o, letter in zip(options, LETTERS, strict=False) if letter == whole[1]):
        return options[LETTERS.index(whole[1])]  # "C. A and B", where these are the third option's words
    letter = read_letter(text, options)
    if letter is not None:
        return options[LETTERS.index(letter)] if len(letter) == 1 else None
    return _by_words(text, wordings)


def read_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter that an answer names; "conflict" if it names several, or one that no option has; None if none."""
    text, count = _ASKED.sub(" ", _plain(text)), len(options)
    labelled = _LABELLED_A.match(text)
    if labelled and not _words(text[labelled.end() :]).startswith(_words(options[0])):
        text = text[labelled.end() :]
    for denied in _DENIED:
        text = denied.sub(" ", text)
    bare = re.sub(r"\b(?:and|or)\b|(?m:^\s*\d+[.)]\s)", " ", text)
    if "&" not in bare and re.fullmatch(r"(?:[\W_]*(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+[\W_]*", bare):
        letters = re.findall(r"[A-Za-z]", bare)
        if len({letter.isupper() for letter in letters}) == 1:
            return _only(letters, count)
    stated = [match for pattern in (_STATED, _IS_ANSWER) for match in pattern.finditer(text) if _is_letter(match, text)]
    joined = _joined(text, count)
    if stated:
        conclusion = max(stated, key=lambda match: match.start(1))
        return _CONFLICT if conclusion.start(1) in joined else _only([conclusion[1]], count)
    verdicts = {match[1]: match[2].lower() in _RIGHT for match in _VERDICT.finditer(text)}
    if len(verdicts) > 1 and not any(_words(o) in _RIGHT | _NOT_RIGHT for o in options):  # "A: wrong, B: right"
        return _only([letter for letter, right in verdicts.items() if right], count)
    leading = _LEADING.match(text)
    if leading and _is_letter(leading, text):
        letter = leading[1].upper()
        follower = LETTERS[(LETTERS.index(letter) + 1) % 26]
        relisted = letter == "A" and re.search(rf"[(\s\"]{follower}\"?[.):]\s*\S", text[leading.end() :])
        if not relisted:
            return _CONFLICT if leading.start(1) in joined else _only([letter], count)
    led = [match for match in _LED.finditer(text) if _is_letter(match, text)]
    listed = _LISTED.search(text)  # "Options: A. red B. blue"
    if led and led[-1].start(1) not in joined and re.fullmatch(r"[\W_]*", text[led[-1].end() :]):
        last, before = led[-1][1], text[: led[-1].start(1)]
        if not listed or last in re.findall(_ALONE, before):
            return _only([last], count)
    capitals = [match for match in led if match[1].isupper() and match[1] in LETTERS[:count]]
    bracketed = [match for match in _BRACKETED.finditer(text) if _is_letter(match, text)]
    for found in (bracketed, capitals):
        letters = [next(filter(None, match.groups())) for match in found]
        if letters:
            several = (listed and set(letters) == {"A"}) or joined & {
                match.start(match.lastindex or 1) for match in found
            }
            return _CONFLICT if several else _only(letters, count)
    return None


def _only(letters: Sequence[str], count: int) -> str:
    distinct = {letter.upper() for letter in letters}
    return next(iter(distinct)) if len(distinct) == 1 and distinct <= set(LETTERS[:count]) else _CONFLICT


def _is_letter(match: re.Match[str], text: str) -> bool:
    """Whether a lone letter is meant as one: before most words it is an article, a pronoun or a name ("C drive")."""
    place = match.lastindex or 1
    end = match.end(place)
    after = _AFTER_LETTER.match(text, end)
    return not _BEFORE_WORD.match(text, end) or (match[place] not in "Ii" and after is not None)


def _joined(text: str, count: int) -> set[int]:
    """Where letters stand that are named beside another one, as in "A or B" or "could be A, could be B"."""
    pairs = [
        match
        for match in _JOINED.finditer(text)
        if match[2].upper() in LETTERS[:count] and match[2].upper() != match[1].upper() and _is_letter(match, text)
    ]
    possible = {match.start(1): match[1].upper() for match in _POSSIBLE.finditer(text)}
    undecided = possible if len(set(possible.values())) > 1 else ()
    return {match.start(place) for match in pairs for place in (1, 2)} | set(undecided)


def _plain(text: str) -> str:
    """Without markup: full-width signs, LaTeX, HTML and Markdown; every kind of bracket becomes a round one."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES | _ENCLOSED)
    text = unescape(re.sub(r"(?s)^\s*<s>(.*)</s>\s*$", r"\1", text))
    text = re.sub(r"^A:(?=\s*\(?[A-Za-z]\)?\.?\s*$)", " ", _QUESTION.sub(" ", text))
    text = re.sub(r"(?:\[ ?\]|[☐⬜○◯])[^\n\[☐⬜☑✅○◯●◉]*|\[[xX]\]", " ", text)  # boxes that are not ticked
    text = re.sub(r"(?s)~~.*?~~|<(del|s|strike)>.*?</\1>", " ", text)
    text = re.sub(r"(?i)\b(option|choice|answer|letter)-(?=[a-z]\b)", r"\1 ", text)
    text = re.sub(
        r"(?i)(?<![a-z])(mr|mrs|ms|dr|fig|cf|vol|apt|e\.g|for\s(?:instance|example)|says|reads|spells)[.:,]+",
        r"\1",
        text,
    )
    text = re.sub(r"(?<![A-Za-z])([A-Z])'s(?= (?:the|right|correct|my|best)\b)", r"\1 is", text)
    text = re.sub(r"(?s)<((?!answer)\w+)(?:\s[^<>]*)?>(.*?)</\1>", r" \2 ", text)
    text = re.sub(r"(?i)<(?:\w+_)?answer>", " answer: ", text)
    text = re.sub(r"<s>|</\w+>|<\|\w+\|>", " ", text)
    text = re.sub(r"\\(?:boxed|fbox)\s*\{", " answer: {", text)
    text = re.sub(r"\\[a-zA-Z]+\s*(?=\{)|\\[,;!() ]|\\[a-zA-Z]+", " ", text)
    text = re.sub(r"[*_`$~\\|]+|(?<![A-Za-z])#|#{2,}|^\s*>", " ", text)
    text = text.translate(_BRACKETS)
    text = re.sub(r"\(\s+", "(", re.sub(r"\s+\)", ")", text))
    while (bare := re.sub(r"\(\(([A-Za-z])\)\)", r"(\1)", text)) != text:
        text = bare
    return text.strip()


def _by_words(text: str, options: Sequence[str]) -> str | None:
    """The option that the answer is but for case, articles and the full stop; else the only one that it holds, or that
    holds it."""
    said = _words(_plain(text))
    known = {option: _words(option) for option in options}
    if equal := [option for option, words in known.items() if words and words == said]:
        return equal[0]
    replied = re.sub(r"(?s)^.*\?", "", _plain(text)).strip()  # after the question, if that is repeated
    first = _words(re.split(r"[,.;:!\n]", replied)[0])  # "No, there is not"
    held = [option for option, words in known.items() if words and f" {words} " in f" {said} "]
    if held and first == known[held[0]] and len(held) == 1:
        return held[0]
    named = "|".join(re.escape(words) for words in known.values() if words)
    denied = rf"(?<!\S)(?:not|than|instead of) (?:{named})(?: (?:or|nor) (?:{named}))*(?!\S)"
    corrected = re.sub(r"^.*\? no (?=\S)", "", said)  # "bluish? no, blue"
    for words in (said, re.sub(denied, " ", said), corrected):
        held = [option for option, phrase in known.items() if phrase and f" {phrase} " in f" {words} "]
        # "dark red" holds "red", too: the longer one is meant.
        held = [o for o in held if not any(o != other and f" {known[o]} " in f" {known[other]} " for other in held)]
        if len(held) == 1 and not _NEGATIONS.search(f" {words} ".replace(f" {known[held[0]]} ", " ")):
            return held[0]
    # "The dog is on the left", of a sentence that goes on; a word or two may be any part of it.
    holding = [option for option, phrase in known.items() if said.count(" ") > 1 and f" {said} " in f" {phrase} "]
    return holding[0] if len(holding) == 1 else None


def _words(text: str) -> str:
    """Lower-case words and signs with a space between, without articles; each Chinese or Korean character is a word."""
    words = [word.rstrip(".'") for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]
    kept = []
    for word, following in zip(words, [*words[1:], ""], strict=False):
        names = word == "a" and (not following.isalnum() or following in _AFTER_NAME)  # "point A and", no article
        if names or word not in ("a", "an", "the", "", '"', "'", ","):
            kept.append(word)
    return " ".join(kept)
