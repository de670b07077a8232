/* The load generator: thousands of WebSocket clients in one process, on loopback.

   It reads one command a line on standard input and answers each with a line of JSON:

     connect PORT PATH COUNT WINDOW SECONDS DIALECT [FILE MARK]
         open COUNT clients, at most WINDOW of them at a time. DIALECT is `plain` or
         `engine.io`. Line i of FILE is sent by client i modulo COUNT; a client is ready
         when it was answered as often as it sent, by texts that hold MARK.
     await FRAMES SECONDS
         until so many frames came since the last answer.
     close
         drop all clients.

   A frame counts that holds `"sent":`, microseconds of CLOCK_MONOTONIC, from which its
   latency is known. `load buckets V...` prints the bucket of the histogram for each value. */
#define _GNU_SOURCE
#include "counts.h"
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_CLIENTS = 60000, MAX_FRAME = 1 << 21, EVENTS = 512 };
enum { MAX_SECONDS = 600, LIFETIME_SECONDS = 3600 };
enum state { CONNECTING, UPGRADING, OPEN, READY, DEAD };

struct client {
    int fd;
    enum state state;
    unsigned asked, answered;
    uint64_t began;
    char *kept; /* the beginning of a frame that has not come whole */
    size_t kept_bytes;
};

static struct client clients[MAX_CLIENTS];
static char buffer[MAX_FRAME], path[256], mark[80];
static char **texts;
static size_t text_count;
static unsigned count;
static int poller, port, engine_io, connecting;

static void die(const char *what) { perror(what); exit(1); }

/* ---- one client ---- */

static void leave(struct client *c) {
    if (c->state == DEAD) return;
    if (c->state != READY) failed++;
    close(c->fd);
    free(c->kept);
    c->kept = NULL;
    c->kept_bytes = 0;
    c->state = DEAD;
    lost++;
}

static void become_ready(struct client *c) {
    c->state = READY;
    ready++;
    spread(now() - c->began);
}

static void say(struct client *c, int opcode, const char *text, size_t length) {
    static char frame[MAX_FRAME]; /* masked, as RFC 6455 asks of clients, with a key of zeros */
    size_t at = 2;
    frame[0] = (char)(0x80 | opcode);
    if (length < 126) {
        frame[1] = (char)(0x80 | length);
    } else {
        frame[1] = (char)(0x80 | 126);
        frame[at++] = (char)(length >> 8);
        frame[at++] = (char)length;
    }
    memset(frame + at, 0, 4);
    memcpy(frame + at + 4, text, length);
    at += 4 + length;
    if (send(c->fd, frame, at, MSG_NOSIGNAL) != (ssize_t)at) leave(c);
}

static void opened(struct client *c) {
    c->state = OPEN;
    for (size_t i = (size_t)(c - clients); i < text_count && c->state == OPEN; i += count) {
        c->asked++;
        say(c, 1, texts[i], strlen(texts[i]));
    }
    if (c->asked == 0 && !engine_io) become_ready(c);
}

static int holds(const char *text, size_t length, const char *what) {
    return memmem(text, length, what, strlen(what)) != NULL;
}

static void take_text(struct client *c, const char *text, size_t length) {
    const char *found = memmem(text, length, "\"sent\":", 7);
    if (found) {
        uint64_t at = now();
        if (!connecting) note(strtoull(found + 7, NULL, 10), at);
        if (!counted++) first_at = at;
        last_at = at;
        bytes += length;
        return;
    }
    others++;
    if ((found = memmem(text, length, "\"position\":\"", 12))) {
        size_t room = length - (size_t)(found + 12 - text), i = 0;
        while (i < room && i < sizeof position - 1 && found[12 + i] != '"') i++;
        memcpy(position, found + 12, i);
        position[i] = 0;
    }
    if (engine_io && length == 1 && text[0] == '2') say(c, 1, "3", 1);
    if (c->state != OPEN) return;
    if (engine_io && text[0] == '0') say(c, 1, "40", 2);
    else if (engine_io && length >= 2 && !memcmp(text, "40", 2)) become_ready(c);
    else if (c->asked && holds(text, length, mark) && ++c->answered == c->asked) become_ready(c);
}

/* Take the frames that are whole; return how many bytes they had. */
static size_t take_frames(struct client *c, const char *data, size_t length) {
    size_t at = 0;
    while (c->state != DEAD && length - at >= 2) {
        const unsigned char *head = (const unsigned char *)data + at;
        size_t skip = 2, size = head[1] & 127;
        if (size == 126) skip = 4;
        if (size == 127) skip = 10;
        if (length - at < skip) break;
        if (skip > 2) size = 0;
        for (size_t i = 2; i < skip; i++) size = size << 8 | head[i];
        if (size > MAX_FRAME / 2) { leave(c); break; }
        if (length - at < skip + size) break;
        int opcode = head[0] & 15;
        if (opcode == 8) leave(c);
        else if (opcode == 9) say(c, 10, data + at + skip, size);
        else if (opcode < 3) take_text(c, data + at + skip, size);
        at += skip + size;
    }
    return at;
}

static void receive(struct client *c) {
    size_t have = c->kept_bytes;
    if (have) memcpy(buffer, c->kept, have);
    ssize_t got = recv(c->fd, buffer + have, sizeof buffer - have - 1, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) { leave(c); return; }
    have += (size_t)got;
    size_t at = 0;
    if (c->state == UPGRADING) {
        buffer[have] = 0;
        char *end = strstr(buffer, "\r\n\r\n");
        if (end && strncmp(buffer, "HTTP/1.1 101", 12)) { leave(c); return; }
        if (end) { at = (size_t)(end + 4 - buffer); opened(c); }
    }
    if (c->state == OPEN || c->state == READY) at += take_frames(c, buffer + at, have - at);
    if (c->state == DEAD) return;
    c->kept_bytes = have - at;
    free(c->kept);
    c->kept = c->kept_bytes ? malloc(c->kept_bytes) : NULL;
    if (c->kept_bytes && !c->kept) die("malloc");
    if (c->kept_bytes) memcpy(c->kept, buffer + at, c->kept_bytes);
}

static void upgrade(struct client *c) {
    static char request[512];
    int length = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: c3luY3NlcnZlciBiZW5jaA==\r\nSec-WebSocket-Version: 13\r\n\r\n", path, port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
    c->state = UPGRADING;
    if (send(c->fd, request, (size_t)length, MSG_NOSIGNAL) != length) leave(c);
}

static void begin(struct client *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *c = (struct client){.began = now(), .state = CONNECTING};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("socket");
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) leave(c);
}

/* Serve the sockets that are ready; say whether a command waits. */
static int turn(int milliseconds) {
    static struct epoll_event events[EVENTS];
    int waiting = 0, number = epoll_wait(poller, events, EVENTS, milliseconds);
    for (int i = 0; i < number; i++) {
        struct client *c = events[i].data.ptr;
        if (c == NULL && events[i].events & EPOLLHUP && !(events[i].events & EPOLLIN)) exit(0);
        if (c == NULL) waiting = 1;
        if (c == NULL || c->state == DEAD) continue;
        if (c->state == CONNECTING && events[i].events & (EPOLLERR | EPOLLHUP)) leave(c);
        else if (c->state == CONNECTING) upgrade(c);
        else receive(c);
    }
    return waiting;
}

/* ---- commands ---- */

static void read_texts(const char *name) {
    FILE *file = fopen(name, "r");
    if (!file) die(name);
    size_t room = 0, size = 0;
    ssize_t length;
    for (char *line = NULL; (length = getline(&line, &size, file)) > 0; line = NULL, size = 0) {
        if (line[length - 1] == '\n') line[length - 1] = 0;
        if (text_count == room) texts = realloc(texts, (room = room * 2 + 64) * sizeof *texts);
        if (!texts || length > 60000) die("texts");
        texts[text_count++] = line;
    }
    fclose(file);
}

static void drop_all(void) {
    for (unsigned i = 0; i < count; i++) leave(&clients[i]);
    for (size_t i = 0; i < text_count; i++) free(texts[i]);
    text_count = 0;
    count = ready = failed = 0;
    lost = 0;
}

static void connect_all(const char *line) {
    static char dialect[16], file[512];
    unsigned window, seconds, wanted, started = 0;
    drop_all();
    int given = sscanf(line, "connect %d %255s %u %u %u %15s %511s %79s", &port, path, &wanted,
                       &window, &seconds, dialect, file, mark);
    if (given < 6 || wanted > MAX_CLIENTS || seconds > MAX_SECONDS) die("connect");
    connecting = 1;
    engine_io = !strcmp(dialect, "engine.io");
    count = wanted;
    if (given == 8) read_texts(file);
    uint64_t end = now() + seconds * 1000000ull;
    first_at = now();
    while (ready + failed < count && now() < end) {
        while (started < count && started - ready - failed < window) begin(&clients[started++]);
        turn(10);
    }
    last_at = now();
    failed = count - ready;
    count = started; /* time may have been up before all were begun */
    answer();
    connecting = 0;
    for (unsigned i = 0; i < count; i++)
        if (clients[i].state != READY) leave(&clients[i]);
}

static void await_frames(const char *line) {
    unsigned long wanted;
    double seconds;
    if (sscanf(line, "await %lu %lf", &wanted, &seconds) != 2 || seconds > MAX_SECONDS) die("await");
    uint64_t end = now() + (uint64_t)(seconds * 1e6);
    while (counted < wanted && now() < end) turn(20);
    answer();
}

static int command(void) {
    static char line[2048];
    size_t length = 0;
    while (length < sizeof line - 1) { /* a byte at a time: nothing of the next line is taken */
        if (read(0, line + length, 1) != 1) return 0;
        if (line[length] == '\n') break;
        length++;
    }
    line[length] = 0;
    if (!strncmp(line, "connect ", 8)) connect_all(line);
    else if (!strncmp(line, "await ", 6)) await_frames(line);
    else if (!strcmp(line, "close")) { drop_all(); answer(); }
    else { fprintf(stderr, "load: unknown command: %s\n", line); exit(2); }
    return 1;
}

int main(int argc, char **argv) {
    for (int i = 2; i < argc; i++) {
        uint64_t low = lowest_in(bucket_of(strtoull(argv[i], NULL, 10)));
        printf("%lu %lu\n", low, lowest_in(bucket_of(low) + 1));
    }
    if (argc > 1) return 0;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    alarm(LIFETIME_SECONDS);
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event);
    while (!turn(1000) || command())
        ;
    return 0;
}
