"""The languages that catalog models know, by code and by English name.

language_code("English"), language_code("en-US"), language_code("EN")    ──▶ "en"
language_code("Flemish")                                                 ──▶ "nl"
language_code("klingon")                                                 ──▶ None
language_name("en")                                                      ──▶ "english"
"""

from __future__ import annotations

import re

# The languages of Whisper large-v3, in the order of its tokenizer: the ISO 639 code, then the English names. The list
# includes the languages of every other model of the catalog.
_NAMES = """
en English; zh Chinese, Mandarin; de German; es Spanish, Castilian; ru Russian; ko Korean; fr French; ja Japanese;
pt Portuguese; tr Turkish; pl Polish; ca Catalan, Valencian; nl Dutch, Flemish; ar Arabic; sv Swedish; it Italian;
id Indonesian; hi Hindi; fi Finnish; vi Vietnamese; he Hebrew; uk Ukrainian; el Greek; ms Malay; cs Czech;
ro Romanian, Moldavian, Moldovan; da Danish; hu Hungarian; ta Tamil; no Norwegian; th Thai; ur Urdu; hr Croatian;
bg Bulgarian; lt Lithuanian; la Latin; mi Maori; ml Malayalam; cy Welsh; sk Slovak; te Telugu; fa Persian, Farsi;
lv Latvian; bn Bengali; sr Serbian; az Azerbaijani; sl Slovenian; kn Kannada; et Estonian; mk Macedonian; br Breton;
eu Basque; is Icelandic; hy Armenian; ne Nepali; mn Mongolian; bs Bosnian; kk Kazakh; sq Albanian; sw Swahili;
gl Galician; mr Marathi; pa Punjabi, Panjabi; si Sinhala, Sinhalese; km Khmer; sn Shona; yo Yoruba; so Somali;
af Afrikaans; oc Occitan; ka Georgian; be Belarusian; tg Tajik; sd Sindhi; gu Gujarati; am Amharic; yi Yiddish; lo Lao;
uz Uzbek; fo Faroese; ht Haitian Creole, Haitian; ps Pashto, Pushto; tk Turkmen; nn Nynorsk; mt Maltese; sa Sanskrit;
lb Luxembourgish, Letzeburgesch; my Burmese, Myanmar; bo Tibetan; tl Tagalog; mg Malagasy; as Assamese; tt Tatar;
haw Hawaiian; ln Lingala; ha Hausa; ba Bashkir; jw Javanese; su Sundanese; yue Cantonese"""
_CODES = {
    name.lower(): code
    for code, names in (entry.split(maxsplit=1) for entry in _NAMES.split(";"))
    for name in re.split(r",\s*", names)
}
LANGUAGES = tuple(dict.fromkeys(_CODES.values()))
_CODE = re.compile(r"([a-z]{2,3})(?:[-_][a-z0-9_-]+)?")


def language_code(text: str) -> str | None:
    """Return the code of a language from its English name, or from a code in any case, with or without a region.

    Any code of two or three letters is returned, because only a checkpoint knows all of its languages. Other texts
    return None.
    """
    text = " ".join(text.lower().split())
    if text in _CODES:
        return _CODES[text]
    match = _CODE.fullmatch(text)
    return match.group(1) if match else None


def language_name(code: str) -> str:
    """Return the English name of a language in lower case, as Whisper names it. A code without a name is its own."""
    return next((name for name, known in _CODES.items() if known == code), code)
