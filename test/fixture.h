// test/fixture.h: tiny valid weight files, built by the tests themselves, to be opened as they are or spoilt first.
//
// In order: the hyperparameters, the file in memory, its parts by name, the file on disk. The writer in fixture.c
// follows doc/format.md on its own and shares only the tables of blip2.h with the loader.
#ifndef TEST_FIXTURE_H
#define TEST_FIXTURE_H

#include "../blip2.h"

typedef struct { uint8_t *data; size_t n; } Fixture;

// A few dozen kilobytes: odd sizes, one or two layers of each kind. family: OPT or T5 (untied).
Config fixture_config(int family);

// The file of these hyperparameters (derived ones are filled in): matrices in dtype F32, BF16, INT8 or INT4, values
// small and random by seed, the tokenizer section as given. Stops the program when memory is short.
Fixture fixture_make(const Config *c, int dtype, const void *tokenizer, size_t tokenizer_bytes, uint32_t seed);
void fixture_free(Fixture *f);
Fixture fixture_copy(const Fixture *f);

// The directory record of a tensor (NULL when there is none), or number i.
uint8_t *fixture_record(const Fixture *f, const char *name);
uint8_t *fixture_record_at(const Fixture *f, int i);
// Where a hyperparameter stands in the file, by its name in CONFIG_INTS or CONFIG_FLOATS.
uint8_t *fixture_config_at(const Fixture *f, const char *name);

void put_u32(uint8_t *p, uint32_t v);
void put_u64(uint8_t *p, uint64_t v);

// Makes head_crc right again after a change; does nothing when the head's length is not possible.
void fixture_seal(Fixture *f);

// Writes n bytes to the file at path, which is made or cut to that length. Stops the program on failure.
void fixture_write(const char *path, const void *data, size_t n);

// Deterministic random numbers: xorshift, state must not be 0.
uint32_t fixture_random(uint32_t *state);

#endif
