/* What the load generator counts, and how it tells it. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { LINEAR = 64, PER_OCTAVE = 64, BUCKETS = LINEAR + 58 * PER_OCTAVE, MAX_STAMPS = 4096 };

/* One publish, known by its time: how many frames of it came, and when the last did. */
struct stamp { uint64_t sent, last; unsigned count; };

static struct stamp stamps[MAX_STAMPS];
static uint64_t buckets[BUCKETS], counted, others, bytes, first_at, last_at, lost;
static unsigned ready, failed, stamp_count;
static char position[80];

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* Microseconds up to 64 have a bucket each, then every power of two has 64. */
static unsigned bucket_of(uint64_t value) {
    if (value < LINEAR) return (unsigned)value;
    unsigned exponent = 63 - (unsigned)__builtin_clzll(value);
    return LINEAR + (exponent - 6) * PER_OCTAVE + (unsigned)((value >> (exponent - 6)) & 63);
}

static uint64_t lowest_in(unsigned bucket) {
    if (bucket < LINEAR) return bucket;
    unsigned octave = (bucket - LINEAR) / PER_OCTAVE;
    return (uint64_t)(PER_OCTAVE + (bucket - LINEAR) % PER_OCTAVE) << octave;
}

static void spread(uint64_t micros) { buckets[bucket_of(micros)]++; }

static void note(uint64_t sent, uint64_t at) {
    spread(at > sent ? at - sent : 0);
    unsigned i = stamp_count;
    while (i > 0 && stamps[i - 1].sent > sent) i--;
    if (i > 0 && stamps[i - 1].sent == sent) {
        stamps[i - 1].count++;
        stamps[i - 1].last = at;
    } else if (stamp_count < MAX_STAMPS) {
        memmove(stamps + i + 1, stamps + i, (stamp_count - i) * sizeof *stamps);
        stamps[i] = (struct stamp){sent, at, 1};
        stamp_count++;
    }
}

static void answer(void) {
    printf("{\"ready\":%u,\"failed\":%u,\"frames\":%lu,\"others\":%lu,\"bytes\":%lu,", ready, failed,
           counted, others, bytes);
    printf("\"lost\":%lu,\"micros\":%lu,\"position\":\"%s\",\"latency\":[", lost,
           last_at - first_at, position);
    const char *comma = "";
    for (unsigned i = 0; i < BUCKETS; i++)
        if (buckets[i]) {
            uint64_t low = lowest_in(i);
            printf("%s[%lu,%lu]", comma, low + (lowest_in(i + 1) - low) / 2, buckets[i]);
            comma = ",";
        }
    printf("],\"last\":[");
    for (unsigned i = 0; i < stamp_count; i++) {
        uint64_t took = stamps[i].last > stamps[i].sent ? stamps[i].last - stamps[i].sent : 0;
        printf("%s[%u,%lu]", i ? "," : "", stamps[i].count, took);
    }
    printf("]}\n");
    fflush(stdout);
    memset(buckets, 0, sizeof buckets);
    stamp_count = 0;
    counted = others = bytes = first_at = last_at = lost = 0;
}
