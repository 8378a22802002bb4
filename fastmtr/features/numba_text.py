"""Text by Numba: words with n-grams, TF-IDF rows, and texts that are lists, from UTF-8 bytes.

What a letter is, its lower case, and what is white space come as tables. The results are those of
:mod:`fastmtr.features.array_text` and ``categories.tokens``. A text that is not valid UTF-8 is counted, and not read.
"""

from __future__ import annotations

import math

import numpy as np

from fastmtr.features.numba_hashing import hash_bytes, remainder
from fastmtr.features.numba_index import is_valid, offset, same_bytes, text_id
from fastmtr.features.numba_lists import put_ids
from fastmtr.features.numba_memory import (
    kernel,
    load_f64,
    load_i32,
    load_i64,
    load_u8,
    load_u64,
    store_f32,
    store_i32,
    store_i64,
    store_u8,
)

__all__ = ["SPACES", "text_lists", "tfidf", "words"]

# Code points from here on are no white space.
SPACES = 0x3001


@kernel
def _is_utf8(at, size):
    end = at + size
    while at < end:
        if end - at >= 8 and load_u64(at) & np.uint64(0x8080808080808080) == 0:
            at += 8
            continue
        lead = load_u8(at)
        at += 1
        if lead < 0x80:
            continue
        if lead < 0xC2 or lead > 0xF4:
            return False
        more = 1 + (lead >= 0xE0) + (lead >= 0xF0)
        if end - at < more:
            return False
        # The second byte tells overlong forms, surrogates and what is beyond U+10FFFF.
        least = 0xA0 if lead == 0xE0 else (0x90 if lead == 0xF0 else 0x80)
        most = 0x9F if lead == 0xED else (0x8F if lead == 0xF4 else 0xBF)
        if load_u8(at) < least or load_u8(at) > most:
            return False
        for i in range(1, more):
            if load_u8(at + i) & 0xC0 != 0x80:
                return False
        at += more
    return True


@kernel
def _point(at):
    """The code point that begins here, and its bytes."""
    lead = np.int64(load_u8(at))
    if lead < 0x80:
        return lead, 1
    more = 1 + (lead >= 0xE0) + (lead >= 0xF0)
    point = lead & (0x3F >> more)
    for i in range(1, more + 1):
        point = (point << 6) | (np.int64(load_u8(at + i)) & 0x3F)
    return point, more + 1


@kernel
def _put_point(at, point):
    """Write a code point; its bytes."""
    if point < 0x80:
        store_u8(at, np.uint8(point))
        return 1
    more = 1 + (point >= 0x800) + (point >= 0x10000)
    mark = 0xC0 if more == 1 else (0xE0 if more == 2 else 0xF0)
    store_u8(at, np.uint8(mark | (point >> (6 * more))))
    for i in range(1, more + 1):
        store_u8(at + i, np.uint8(0x80 | ((point >> (6 * (more - i))) & 0x3F)))
    return more + 1


# ---- words -----------------------------------------------------------------------------------------------------------
# The scratch memory holds the words of a text in lower case, a space between two, from `second` on, and where each word
# begins and ends, as addresses, from `third` on.


@kernel
def _read_words(step, at, size, scratch):
    """Read the words of valid UTF-8; how many they are."""
    end, put, marks = at + size, scratch + step.second, scratch + step.third
    n = 0
    inside = False
    while at < end:
        point, more = _point(at)
        at += more
        point = np.int64(load_i32(step.table + 4 * point))
        word = load_u8(step.word + point) != 0
        if word and not inside:
            if n == step.most_words:
                return n
            if n > 0:
                store_u8(put, np.uint8(32))
                put += 1
            store_i64(marks + 16 * n, put)
            n += 1
        if word:
            put += _put_point(put, point)
            store_i64(marks + 16 * n - 8, put)
        inside = word
    return n


@kernel
def words(step, begin, end, counts, scratch):
    """Write the ids of each text's n-grams."""
    marks = scratch + step.third
    for i in range(begin, end):
        start = offset(step, i)
        at, size, out = step.values + start, offset(step, i + 1) - start, step.out + i * step.stride
        if not _is_utf8(at, size):
            counts[1] += 1
            continue
        n = _read_words(step, at, size, scratch) if is_valid(step, i) else 0
        total = 0
        for more in range(min(step.ngrams, n)):
            total += n - more
        most = min(total, step.length)
        first = total - most if step.keep_last != 0 else 0
        place = -first
        for word in range(n):
            gram = load_i64(marks + 16 * word)
            for last in range(word, min(word + step.ngrams, n)):
                kept = place >= 0 and place < most
                if kept or step.refuses != 0:
                    one = text_id(step, gram, load_i64(marks + 16 * last + 8) - gram, counts)
                    if kept:
                        store_i32(out + 4 * place, one)
                place += 1
        for j in range(most, step.length):
            store_i32(out + 4 * j, np.int32(0))


@kernel
def tfidf(step, begin, end, counts, scratch):
    """Write the weights of each text's n-grams; the scratch memory begins with the count of each column."""
    marks, width = scratch + step.third, step.length
    for i in range(begin, end):
        start = offset(step, i)
        at, size, out = step.values + start, offset(step, i + 1) - start, step.out + i * step.stride
        if not _is_utf8(at, size):
            counts[1] += 1
            continue
        for j in range(width):
            store_i32(scratch + 4 * j, np.int32(0))
        n = 0
        if is_valid(step, i):
            n = _read_words(step, at, size, scratch)
        else:
            counts[0] += 1
        for word in range(n):
            gram = load_i64(marks + 16 * word)
            for last in range(word, min(word + step.ngrams, n)):
                h = hash_bytes(gram, load_i64(marks + 16 * last + 8) - gram, np.uint64(0))
                column = scratch + 4 * np.int64(remainder(h, step.rows, step.magic, step.shift))
                store_i32(column, np.int32(load_i32(column) + 1))
        total = 0.0
        for j in range(width):
            weight = np.float64(load_i32(scratch + 4 * j)) * load_f64(step.knots + 8 * j)
            total += weight * weight
        length = math.sqrt(total)
        for j in range(width):
            weight = np.float64(load_i32(scratch + 4 * j)) * load_f64(step.knots + 8 * j)
            store_f32(out + 4 * j, np.float32(weight / length if length > 0 else 0.0))


# ---- texts that are lists --------------------------------------------------------------------------------------------


@kernel
def _is_space(step, point):
    return point < SPACES and load_u8(step.space + point) != 0


@kernel
def _stripped(step, at, end):
    """Where a text begins and ends without white space."""
    while at < end:
        point, more = _point(at)
        if not _is_space(step, point):
            break
        at += more
    while at < end:
        last = end - 1
        while load_u8(last) & 0xC0 == 0x80:
            last -= 1
        point, _ = _point(last)
        if not _is_space(step, point):
            break
        end = last
    return at, end


@kernel
def _separator(step, at, end):
    """Where the next separator begins, or the text ends."""
    size, first = step.separator_size, load_u8(step.separator)
    while at + size <= end:
        if load_u8(at) == first and same_bytes(at, step.separator, size):
            return at
        at += 1
    return end


@kernel
def text_lists(step, begin, end, counts, scratch):
    """Write the ids of the parts of each text; the scratch memory holds them, and their set from `second` on."""
    for i in range(begin, end):
        n = 0
        if is_valid(step, i):
            start = offset(step, i)
            at, text_end = step.values + start, step.values + offset(step, i + 1)
            if not _is_utf8(at, text_end - at):
                counts[1] += 1
                continue
            while at <= text_end:
                after = _separator(step, at, text_end)
                part, part_end = _stripped(step, at, after)
                if part < part_end:
                    store_i32(scratch + 4 * n, text_id(step, part, part_end - part, counts))
                    n += 1
                at = after + step.separator_size
        put_ids(step, scratch, n, scratch + step.second, step.out + i * step.stride)
