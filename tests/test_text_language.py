"""The language of a text: 25 languages, texts of every length, and texts that have none."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.backends.common.text_language import MAX_CHARACTERS, identify
from worker.catalog.rows import EUROPEAN

TEXTS = {
    "bg": "Взехме ранния влак, защото пътят край реката все още беше затворен след бурята.",
    "cs": "Jeli jsme ranním vlakem, protože silnice podél řeky byla po bouři stále uzavřená.",
    "da": "Vi tog det tidlige tog, fordi vejen langs floden stadig var lukket efter stormen.",
    "de": "Wir nahmen den frühen Zug, weil die Straße am Fluss nach dem Sturm noch gesperrt war.",
    "el": "Πήραμε το πρωινό τρένο, επειδή ο δρόμος δίπλα στο ποτάμι ήταν ακόμη κλειστός μετά την καταιγίδα.",
    "en": "We took the early train because the road along the river was still closed after the storm.",
    "es": "Tomamos el primer tren porque la carretera junto al río todavía estaba cerrada después de la tormenta.",
    "et": "Me sõitsime varase rongiga, sest jõeäärne tee oli pärast tormi ikka veel suletud.",
    "fi": "Lähdimme aikaisella junalla, koska joen varrella kulkeva tie oli myrskyn jälkeen vielä suljettu.",
    "fr": "Nous avons pris le premier train, car la route le long du fleuve était encore fermée après la tempête.",
    "hr": "Krenuli smo ranim vlakom jer je cesta uz rijeku nakon oluje još uvijek bila zatvorena.",
    "hu": "A korai vonattal mentünk, mert a folyó menti út a vihar után még mindig le volt zárva.",
    "it": "Abbiamo preso il primo treno perché la strada lungo il fiume era ancora chiusa dopo la tempesta.",
    "lt": "Mes važiavome ankstyvu traukiniu, nes kelias palei upę po audros dar buvo uždarytas.",
    "lv": "Mēs braucām ar agro vilcienu, jo ceļš gar upi pēc vētras vēl bija slēgts.",
    "mt": "Ħadna l-ferrovija bikrija għax it-triq ħdejn ix-xmara kienet għadha magħluqa wara l-maltempata.",
    "nl": "We namen de vroege trein, omdat de weg langs de rivier na de storm nog steeds gesloten was.",
    "pl": "Pojechaliśmy wczesnym pociągiem, ponieważ droga wzdłuż rzeki po burzy była jeszcze zamknięta.",
    "pt": "Apanhámos o primeiro comboio porque a estrada junto ao rio ainda estava fechada depois da tempestade.",
    "ro": "Am luat trenul de dimineață, pentru că drumul de lângă râu era încă închis după furtună.",
    "ru": "Мы поехали ранним поездом, потому что дорога вдоль реки после бури всё ещё была закрыта.",
    "sk": "Išli sme skorým vlakom, pretože cesta pozdĺž rieky bola po búrke stále zatvorená.",
    "sl": "Šli smo z zgodnjim vlakom, ker je bila cesta ob reki po nevihti še vedno zaprta.",
    "sv": "Vi tog det tidiga tåget eftersom vägen längs floden fortfarande var stängd efter stormen.",
    "uk": "Ми поїхали раннім потягом, тому що дорога вздовж річки після бурі все ще була закрита.",
}


def parts(text: str, count: int) -> list[str]:
    """Every run of so many words."""
    words = text.split()
    return [" ".join(words[i : i + count]) for i in range(len(words) - count + 1)]


def test_every_language_of_parakeet_and_canary_is_in_the_table():
    assert set(TEXTS) == set(EUROPEAN)


@pytest.mark.parametrize("code", TEXTS)
def test_a_sentence_is_identified(code):
    assert identify(TEXTS[code], EUROPEAN) == code
    assert identify(TEXTS[code].upper(), EUROPEAN) == code
    bare = "".join(letter for letter in TEXTS[code].lower() if letter.isalpha() or letter == " ")
    assert identify(bare, EUROPEAN) == code  # a model without punctuation wrote it
    assert identify(TEXTS[code]) == code  # among all languages


@pytest.mark.parametrize(("words", "known", "wrong"), [(1, 0.2, 0.0), (2, 0.5, 0.02), (4, 0.9, 0.0), (8, 1.0, 0.0)])
def test_a_short_text_is_right_or_unknown(words, known, wrong):
    pairs = [(identify(part, EUROPEAN), code) for code, text in TEXTS.items() for part in parts(text, words)]
    assert sum(found is not None for found, _ in pairs) >= known * len(pairs)
    assert sum(found not in (None, code) for found, code in pairs) <= wrong * len(pairs)


@pytest.mark.parametrize("text", ["", " ", "42", "12:30, 7.5 %", "...", "¿?", "♪ ♪", "Mm-hmm.", "OK"])
def test_a_text_without_a_language_is_unknown(text):
    assert identify(text, EUROPEAN) is None


def test_only_the_languages_of_the_model_are_found():
    norwegian = "Vi tok det tidlige toget fordi veien langs elva fortsatt var stengt etter stormen."
    assert identify(norwegian) == "no"
    assert identify(norwegian, EUROPEAN) in ("da", "sv", None)
    assert identify("今日はいい天気ですね。", EUROPEAN) is None
    assert identify("今日はいい天気ですね。") == "ja"
    assert identify("", ["de"]) == "de"  # a model of one language writes no other


@given(text=st.text(st.characters(codec=None), max_size=60), languages=st.lists(st.sampled_from(EUROPEAN), unique=True))
def test_any_text_is_a_code_of_the_languages_or_unknown_and_always_the_same(text, languages):
    found = identify(text, languages)
    assert found is None or found in languages or (not languages and len(found) == 2)
    assert identify(text, languages[::-1]) == found


def test_a_long_text_is_read_up_to_a_limit():
    german = TEXTS["de"] * (MAX_CHARACTERS // len(TEXTS["de"]) + 1)
    assert identify(german + TEXTS["ru"] * 1000, EUROPEAN) == "de"


def test_importing_the_module_loads_nothing():
    code = "import sys, worker.backends.common.text_language; assert 'py3langid' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
