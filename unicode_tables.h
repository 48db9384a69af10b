// unicode_tables.h: the Unicode classes that tokenization depends on (unicode_tables.c is generated).
#ifndef UNICODE_TABLES_H
#define UNICODE_TABLES_H

#include <stdint.h>

// unicode_class(cp): class bits of a code point.
enum { UNI_KIND = 3, UNI_LETTER = 1, UNI_NUMBER = 2, UNI_SPACE = 3,   // \p{L}, \p{N}, \s: at most one of them
       UNI_WORD = 4 };                                                // \w of Rust's regex
int unicode_class(uint32_t cp);

// Grapheme cluster break property (Unicode Standard Annex 29): unicode_class(cp) >> 4. Hangul LV syllables
// are given as LVT.
enum { GCB_OTHER, GCB_CR, GCB_LF, GCB_CONTROL, GCB_EXTEND, GCB_ZWJ, GCB_PREPEND, GCB_SPACING, GCB_L, GCB_V,
       GCB_T, GCB_LVT, GCB_RI, GCB_PICTOGRAPHIC };

#endif
