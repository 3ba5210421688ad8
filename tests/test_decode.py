"""Files → Clips: right length, right mix, no clipping; hostile and broken files cost one item."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import encode, state_flac_samples, tone

from worker.audio import flac
from worker.audio.decode import Decoder, expected_sec, stated_sec
from worker.audio.decode_process import by_libav, without_padding
from worker.config import Settings
from worker.errors import Cancelled, DecodeFailed, EmptyAudio, TooLong
from worker.types import Clip

SETTINGS = Settings(decode_workers=2, max_audio_sec=60)


@pytest.fixture(scope="module")
def decoder():
    made = Decoder(SETTINGS)
    yield made
    made.close()


def decode(decoder: Decoder, path: Path) -> Clip:
    with path.open("rb") as file:
        return decoder.decode(file)


def frequency(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * 16_000 / len(samples))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", ()),
        ("a.flac", ()),
        ("a.mp3", ("-b:a", "64k")),
        ("a.ogg", ("-c:a", "libvorbis")),
        ("b.ogg", ("-c:a", "libopus")),
        ("a.opus", ("-c:a", "libopus")),
        ("a.m4a", ("-c:a", "aac")),
        ("a.aac", ("-c:a", "aac")),
        ("a.webm", ("-c:a", "libopus")),
        ("a.mka", ("-c:a", "flac")),
        ("a.aiff", ()),
        ("a.au", ()),
        ("a.caf", ()),
        ("a.w64", ()),
        ("a.wma", ()),
        ("a.ac3", ()),
        ("u8.wav", ("-c:a", "pcm_u8")),
        ("s24.wav", ("-c:a", "pcm_s24le")),
        ("f64.wav", ("-c:a", "pcm_f64le")),
        ("mulaw.wav", ("-c:a", "pcm_mulaw")),
        ("adpcm.wav", ("-c:a", "adpcm_ms")),
        ("8k.wav", ("-ar", "8000")),
        ("96k.flac", ("-ar", "96000")),
        ("stereo.mp3", ("-ac", "2", "-ar", "44100")),
        ("six.flac", ("-ac", "6")),
        ("six.m4a", ("-ac", "6", "-c:a", "aac")),
        ("wave.mp2", ()),
        ("a.ts", ("-c:a", "aac")),
        ("a.mov", ("-c:a", "pcm_s16le")),
    ],
)
def test_every_kind_of_file_has_the_right_length_pitch_and_level(decoder, tmp_path, name, options):
    source = tone(tmp_path / "source.wav", 2.0, 48_000)
    clip = decode(decoder, encode(source, tmp_path / name, *options))
    assert clip.samples.dtype == np.float32
    assert clip.samples.ndim == 1
    # these formats do not state the padding that their encoder added, and ffmpeg 5 does not cut it off in MP4
    padded = name in ("a.aac", "a.ac3", "wave.mp2", "a.ts", "a.wma", "adpcm.wav", "six.m4a")
    assert clip.duration_sec == pytest.approx(2.0, abs=0.07 if padded else 0.002)
    assert frequency(clip.samples) == pytest.approx(440, abs=2)
    if "-ac" not in options:  # ffmpeg itself lowers the level when it makes several channels out of one
        assert np.abs(clip.samples[8000:-8000]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_samples_are_those_of_the_file(decoder, tmp_path, suffix):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 400_000).astype(np.int16)
    samples[:2] = -(2**15), 2**15 - 1
    soundfile.write(tmp_path / f"a.{suffix}", samples, 16_000)
    assert np.array_equal(decode(decoder, tmp_path / f"a.{suffix}").samples, samples / np.float32(2**15))


@pytest.mark.parametrize(
    ("name", "options"), [("a.wav", ()), ("a.flac", ()), ("a.m4a", ("-c:a", "aac")), ("six.m4a", ("-ac", "6"))]
)
def test_a_file_in_memory_gives_what_it_gives_on_disk(decoder, tmp_path, name, options):
    path = encode(tone(tmp_path / "source.wav", 2.0), tmp_path / name, *options)
    clip = decoder.decode(io.BytesIO(path.read_bytes()))
    assert np.array_equal(clip.samples, decode(decoder, path).samples)
    assert clip.duration_sec == pytest.approx(2.0, abs=0.07 if name == "six.m4a" else 0.01)


def test_video(decoder, tmp_path):
    source = tone(tmp_path / "source.wav", 2.0)
    video = encode(
        source, tmp_path / "a.mp4", "-f", "lavfi", "-i", "color=c=blue:s=64x64:d=2", "-map", "1:v", "-map", "0:a"
    )
    assert decode(decoder, video).duration_sec == pytest.approx(2.0, abs=0.002)


def test_a_video_without_sound_says_so(decoder, tmp_path):
    source = tone(tmp_path / "source.wav", 1.0)
    video = encode(source, tmp_path / "a.mp4", "-f", "lavfi", "-i", "color=c=blue:s=64x64:d=1", "-map", "1:v")
    with pytest.raises(DecodeFailed, match="the file has no audio track"):
        decode(decoder, video)


@pytest.mark.parametrize("channels", [2, 6])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_channels_are_mixed_without_clipping(decoder, tmp_path, channels, suffix):
    wave = 0.9 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), 16_000)
    assert np.abs(decode(decoder, path).samples).max() == pytest.approx(0.9, abs=0.01)


def test_one_silent_channel_halves_the_level(decoder, tmp_path):
    wave = 0.8 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, 0 * wave], axis=1), 16_000)
    assert np.abs(decode(decoder, tmp_path / "a.wav").samples).max() == pytest.approx(0.4, abs=0.01)


def test_libsndfile_and_libav_agree(decoder, tmp_path):
    for rate in (16_000, 44_100):
        flac = tone(tmp_path / f"{rate}.flac", 3.0, rate, 2)
        mkv = encode(flac, tmp_path / f"{rate}.mka", "-c:a", "flac")
        one, other = decode(decoder, flac).samples, decode(decoder, mkv).samples
        assert abs(len(one) - len(other)) <= 1
        middle = slice(1000, min(len(one), len(other)) - 1000)
        assert np.abs(one[middle] - other[middle]).max() < 0.01


@pytest.mark.parametrize(
    ("name", "body", "error"),
    [
        ("noise.mp3", os.urandom(5000), DecodeFailed),
        ("text.wav", b"this is not audio\n" * 100, DecodeFailed),
        ("head.wav", b"RIFF\x24\x00\x00\x00WAVE", DecodeFailed),
        ("zeros.flac", bytes(4000), DecodeFailed),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{secret}\n#EXT-X-ENDLIST\n", DecodeFailed),
        ("list.wav", b"#EXTM3U\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n", DecodeFailed),
        ("list.txt", b"ffconcat version 1.0\nfile '{secret}'\n", DecodeFailed),
        (
            "list.mpd",
            b"<?xml version='1.0'?><MPD><Period><AdaptationSet mimeType='audio/mp4'>"
            b"<Representation><BaseURL>{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>",
            DecodeFailed,
        ),
        ("sdp.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n", DecodeFailed),
    ],
)
def test_what_is_not_audio_or_points_elsewhere_fails_clearly(decoder, tmp_path, name, body, error):
    secret = tone(tmp_path / "secret.wav", 1.0)
    path = tmp_path / name
    path.write_bytes(body.replace(b"{secret}", str(secret).encode()))
    with pytest.raises(error) as caught:
        decode(decoder, path)
    assert str(tmp_path) not in caught.value.message
    assert "/dev/fd" not in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '{secret}'\n",
    ],
)
def test_libav_itself_refuses_what_points_elsewhere(tmp_path, body):
    """Not only ffmpeg, to which its refusals go."""
    path = tmp_path / "list"
    path.write_bytes(body.replace(b"{secret}", str(tone(tmp_path / "secret.wav", 1.0)).encode()))
    with path.open("rb") as file, pytest.raises(ValueError, match=r"[Ii]nvalid"):
        list(by_libav(file.fileno()))


def test_no_samples(decoder, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16_000)
    with pytest.raises(EmptyAudio):
        decode(decoder, tmp_path / "a.wav")


def test_one_sample(decoder, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1), 16_000)
    assert len(decode(decoder, tmp_path / "a.wav").samples) == 1


def test_not_a_number(decoder, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(1000, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(DecodeFailed, match="NaN"):
        decode(decoder, tmp_path / "a.wav")


def test_a_long_file_that_is_refused_at_its_end_keeps_no_memory(tmp_path):
    samples = np.zeros(16_000 * 400, "f4")
    samples[-1] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    made = Decoder(SETTINGS.model_copy(update={"max_audio_sec": 600}))
    with pytest.raises(DecodeFailed):
        decode(made, tmp_path / "a.wav")
    process = made._idle.get_nowait()
    assert os.fstat(process._memory.fileno()).st_size <= 1 << 24
    process.close()


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac"])
def test_a_file_that_breaks_off_gives_what_there_is_and_says_so(decoder, tmp_path, suffix):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "source.wav", 0.1 * rng.standard_normal(160_000), 16_000)
    whole = encode(tmp_path / "source.wav", tmp_path / f"a.{suffix}")
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    clip = decode(decoder, cut)
    assert 3 < clip.duration_sec < 6
    assert clip.warning
    assert decode(decoder, whole).warning is None


def test_too_long_is_noticed_while_decoding(tmp_path):
    limited = Decoder(SETTINGS.model_copy(update={"max_audio_sec": 2.0}))
    for name in ("a.flac", "a.m4a"):
        path = encode(tone(tmp_path / "source.wav", 30.0), tmp_path / name)
        with pytest.raises(TooLong, match="MAX_AUDIO_SEC"):
            decode(limited, path)
    assert decode(limited, tone(tmp_path / "ok.wav", 1.9)).duration_sec == pytest.approx(1.9)
    limited.close()


def test_cancelling(decoder, tmp_path):
    with tone(tmp_path / "a.wav", 5.0).open("rb") as file, pytest.raises(Cancelled):
        decoder.decode(file, cancelled=lambda: True)


def test_a_decoder_that_crashes_costs_nothing_and_is_replaced(tmp_path):
    """The process is killed under it: ffmpeg takes the file over, and the next file finds a fresh process."""
    made = Decoder(SETTINGS)
    path = tone(tmp_path / "a.wav", 1.0, 8_000)
    decode(made, path)
    process = made._idle.queue[0]._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert decode(made, path).duration_sec == pytest.approx(1.0)
    assert made._idle.qsize() == 0
    assert decode(made, path).duration_sec == pytest.approx(1.0)
    assert made._idle.queue[0]._process.pid != process.pid
    made.close()


@pytest.mark.parametrize("name", ["a.flac", "a.m4a", "six.m4a"])
def test_a_decoder_that_hangs_is_ended_at_the_time_limit(tmp_path, monkeypatch, name):
    made = Decoder(SETTINGS.model_copy(update={"decode_timeout_sec": 1.0}))
    path = encode(tone(tmp_path / "source.wav", 1.0), tmp_path / name, "-ac", "6" if name == "six.m4a" else "1")
    if name != "six.m4a":  # which only ffmpeg mixes
        decode(made, path)
        os.kill(made._idle.queue[0]._process.pid, signal.SIGSTOP)
    else:
        monkeypatch.setattr("worker.audio.ffmpeg.command", lambda _descriptor, _split: ["sleep", "60"])
    started = time.monotonic()
    with pytest.raises(DecodeFailed, match="DECODE_TIMEOUT_SEC"):
        decode(made, path)
    assert time.monotonic() - started < 5
    made.close()


def test_padding_is_cut_and_audio_that_the_header_forgot_is_not():
    parts = [np.ones(1000, np.float32)] * 5
    for promised, kept in (
        (4500, 4500),
        (4000, 4000),
        (3999, 3999),
        (5000, 5000),
        (9000, 5000),
        (None, 5000),
        (2000, 5000),
    ):
        assert sum(map(len, without_padding(iter(parts), promised))) == kept


def test_the_expected_length_is_close_where_the_header_tells(tmp_path):
    for path in (tone(tmp_path / "a.wav", 7.0, 44_100, 2), tone(tmp_path / "a.flac", 7.0, 44_100, 2)):
        with path.open("rb") as file:
            assert expected_sec(file) == pytest.approx(7.0, rel=0.01)


@pytest.mark.parametrize("options", [(), ("-ar", "44100", "-ac", "2"), ("-ar", "96000", "-sample_fmt", "s32")])
@pytest.mark.parametrize("stated", [0, 1, 16, 15_000])
def test_a_flac_that_states_too_little_or_nothing_is_read_whole(decoder, tmp_path, options, stated):
    path = encode(tone(tmp_path / "source.wav", 2.0), tmp_path / "a.flac", *options)
    whole = decode(decoder, path).samples
    state_flac_samples(path, stated)
    with path.open("rb") as file:
        assert expected_sec(file) == pytest.approx(2.0, abs=0.01)
    samples = decode(decoder, path).samples
    assert abs(len(samples) - len(whole)) <= 1
    middle = slice(1000, len(whole) - 1000)
    assert np.abs(samples[middle] - whole[middle]).max() < 0.001
    assert decode(decoder, path).warning is None


def test_the_last_frame_of_every_flac_ends_where_its_header_says(tmp_path):
    rng = np.random.default_rng(0)
    for rate, channels, frames, subtype, level in [
        (8_000, 1, 1, "PCM_16", 0.0),
        (16_000, 1, 4096, "PCM_16", 0.3),
        (44_100, 2, 4097, "PCM_24", 0.3),
        (11_111, 1, 700_001, "PCM_S8", 0.3),
        (96_000, 2, 191_999, "PCM_24", 0.0),
        (655_350, 6, 30_000, "PCM_16", 0.3),
    ]:
        soundfile.write(
            tmp_path / "a.flac", level * rng.uniform(-1, 1, (frames, channels)), rate, subtype=subtype, format="FLAC"
        )
        data = (tmp_path / "a.flac").read_bytes()
        info = flac.stream_info(data[: flac.HEAD_BYTES])
        assert (info.rate, info.channels, info.samples) == (rate, channels, frames)
        assert flac.last_sample(data[-flac.TAIL_BYTES :], info) == frames
        assert flac.last_sample(data[-flac.TAIL_BYTES :] + b"\xff\xf8\xff\xff" * 9, info) == frames
    assert flac.last_sample(os.urandom(1 << 12), flac.StreamInfo(4096, 16_000, 9, 0)) == 0
    assert flac.stream_info(bytes(flac.HEAD_BYTES)) is None
    assert flac.stream_info(b"fLaC" + bytes(38)) is None


def test_a_header_that_states_too_much_is_refused_before_decoding(tmp_path, monkeypatch):
    def refuse():
        raise AssertionError("it was decoded")

    monkeypatch.setattr("worker.audio.decode._Process", refuse)
    made = Decoder(SETTINGS)
    soundfile.write(tmp_path / "long.wav", np.zeros(62 * 8000, np.int16), 8000)
    soundfile.write(tmp_path / "long.flac", np.zeros(62 * 8000, np.int16), 8000)
    soundfile.write(tmp_path / "24.wav", np.zeros(62 * 16_000, np.int16), 16_000, subtype="PCM_24")
    soundfile.write(tmp_path / "1hz.wav", np.zeros(100, np.int16), 1)
    soundfile.write(tmp_path / "absurd.flac", np.zeros(100, np.int16), 8000)
    state_flac_samples(tmp_path / "absurd.flac", 2**36 - 1)
    for name in ("long.wav", "long.flac", "24.wav", "1hz.wav", "absurd.flac"):
        with pytest.raises(TooLong, match=r"the audio is longer than 60 s \(MAX_AUDIO_SEC\)") as caught:
            decode(made, tmp_path / name)
        assert (caught.value.code, caught.value.status) == ("too_long", 413)


def test_the_stated_length_of_a_wav_is_that_of_its_samples(tmp_path):
    path = tone(tmp_path / "a.wav", 7.0, 44_100, 2)
    data = bytearray(path.read_bytes())
    data[28:32] = (1).to_bytes(4, "little")  # the byte rate, which decoders ignore
    path.write_bytes(data + bytes(1_000_000))  # what follows the samples is no audio
    with path.open("rb") as file:
        assert stated_sec(file) == pytest.approx(7.0)
    for size in (0, 0xFFFFFFFF):  # a program that writes into a pipe does not know it
        at = data.index(b"data") + 4
        data[at : at + 4] = size.to_bytes(4, "little")
        path.write_bytes(data)
        with path.open("rb") as file:
            assert stated_sec(file) == pytest.approx(7.0)
    for name, options in (("adpcm.wav", ("-c:a", "adpcm_ms")), ("a.mp3", ()), ("a.ogg", ("-c:a", "libvorbis"))):
        with encode(tone(tmp_path / "source.wav", 2.0), tmp_path / name, *options).open("rb") as file:
            assert stated_sec(file) is None
            assert 0 < expected_sec(file) < 60
            assert expected_sec(file, 0.1) == 0.1


@pytest.mark.parametrize("head", ["RIFF", "RIFFsizeWAVE", "RIFFsizeWAVEfmt ", "fLaC", ""])
def test_a_header_that_breaks_off_states_nothing(head):
    for zeros in (0, 10, 5000):
        assert stated_sec(io.BytesIO(head.encode() + bytes(zeros))) is None
        expected_sec(io.BytesIO(head.encode() + bytes(zeros)))


@pytest.mark.parametrize("suffix", ["flac", "m4a"])
def test_decoding_continues_as_far_as_there_is_room(decoder, tmp_path, suffix):
    path = encode(tone(tmp_path / "source.wav", 59.0), tmp_path / f"a.{suffix}")
    whole = decode(decoder, path).samples
    asked: list[int] = []

    def room(size: int) -> int:
        asked.append(size)
        return size + 1_000_000

    with path.open("rb") as file:
        assert np.array_equal(decoder.decode(file, room=room).samples, whole)
    assert asked[0] == 0
    assert asked == sorted(asked)
    assert 1 < len(asked) < 5


@pytest.mark.parametrize("name", ["plain.wav", "a.flac", "six.m4a"])
def test_decoding_ends_where_there_is_no_room(decoder, tmp_path, name):
    path = encode(tone(tmp_path / "source.wav", 59.0), tmp_path / name, "-ac", "6" if name == "six.m4a" else "1")

    def room(size: int) -> int:
        if size > 1_000_000:
            raise KeyError(size)
        return 1_000_000

    with path.open("rb") as file, pytest.raises(KeyError):
        decoder.decode(file, room=room)
    assert decode(decoder, path).duration_sec == pytest.approx(59, abs=0.1)


def test_a_long_clip_is_in_memory_once(tmp_path, monkeypatch):
    made = Decoder(SETTINGS.model_copy(update={"max_audio_sec": 3600}))
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 16_000 * 1600).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", samples, 16_000)
    kept, moved, most = os.preadv, [0], [0]

    def preadv(descriptor, buffers, offset):
        got = kept(descriptor, buffers, offset)
        moved[0] += got
        most[0] = max(most[0], moved[0] + os.fstat(descriptor).st_blocks * 512)
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    clip = decode(made, tmp_path / "a.flac")
    assert np.array_equal(clip.samples, samples / np.float32(2**15))
    assert moved[0] == clip.samples.nbytes > 100_000_000
    assert most[0] <= clip.samples.nbytes + 2 * (1 << 24)
    made.close()


@pytest.mark.slow
def test_an_hour_and_more_is_decoded_whole(tmp_path):
    made = Decoder(SETTINGS.model_copy(update={"max_audio_sec": 4 * 3600}))
    soundfile.write(tmp_path / "a.flac", np.zeros(3 * 3600 * 8000, np.int16), 8000)
    assert decode(made, tmp_path / "a.flac").duration_sec == 3 * 3600
    made.close()
