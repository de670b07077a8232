/* The limit: what a bare loop over epoll needs to send the same bytes to everybody.

   It listens on a port of its own choice, makes each line of a POST a text frame, joins the
   frames of one POST, and calls send() once for each client. A client whose socket does not
   take all of it is dropped. It does nothing else that a server has to do. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_CLIENTS = 60000, MAX_BODY = 1 << 20, EVENTS = 512, LIFETIME_SECONDS = 3600 };

static int subscribers[MAX_CLIENTS], subscriber_count, poller;
static char request[MAX_BODY + 4096], frames[MAX_BODY * 2];

static uint32_t rotate(uint32_t x, int by) { return x << by | x >> (32 - by); }

/* SHA-1 (FIPS 180) of a text of at most 119 bytes: two blocks. */
static void sha1(const char *text, unsigned char digest[20]) {
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}, w[80];
    unsigned char block[128] = {0};
    size_t length = strlen(text), size = length < 56 ? 64 : 128;
    memcpy(block, text, length);
    block[length] = 0x80;
    block[size - 2] = (unsigned char)(length >> 5);
    block[size - 1] = (unsigned char)(length << 3);
    for (size_t start = 0; start < size; start += 64) {
        for (int i = 0; i < 16; i++) {
            const unsigned char *b = block + start + 4 * i;
            w[i] = (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
        }
        for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            uint32_t f, k;
            if (i < 20) f = (b & c) | (~b & d), k = 0x5a827999;
            else if (i < 40) f = b ^ c ^ d, k = 0x6ed9eba1;
            else if (i < 60) f = (b & c) | (b & d) | (c & d), k = 0x8f1bbcdc;
            else f = b ^ c ^ d, k = 0xca62c1d6;
            uint32_t next = rotate(a, 5) + f + e + k + w[i];
            e = d, d = c, c = rotate(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const unsigned char digest[20], char out[29]) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char padded[21] = {0};
    memcpy(padded, digest, 20);
    for (int i = 0, o = 0; i < 21; i += 3) {
        uint32_t three = (uint32_t)padded[i] << 16 | (uint32_t)padded[i + 1] << 8 | padded[i + 2];
        for (int shift = 18; shift >= 0; shift -= 6) out[o++] = alphabet[three >> shift & 63];
    }
    out[27] = '=';
    out[28] = 0;
}

static void drop(int fd) {
    for (int i = 0; i < subscriber_count; i++)
        if (subscribers[i] == fd) {
            subscribers[i] = subscribers[--subscriber_count];
            break;
        }
    close(fd);
}

static void upgrade(int fd) {
    char key[64], text[128], accept[29], answer[256];
    unsigned char digest[20];
    const char *found = strcasestr(request, "sec-websocket-key:");
    if (!found || sscanf(found + 18, " %60s", key) != 1 || subscriber_count == MAX_CLIENTS) {
        drop(fd);
        return;
    }
    snprintf(text, sizeof text, "%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    sha1(text, digest);
    base64(digest, accept);
    int length = snprintf(answer, sizeof answer,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    if (send(fd, answer, (size_t)length, MSG_NOSIGNAL) != length) drop(fd);
    else subscribers[subscriber_count++] = fd;
}

static void publish(int fd, const char *body, size_t length) {
    static const char done[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    size_t at = 0;
    for (const char *line = body, *end = body + length; line < end;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        size_t size = (size_t)((stop ? stop : end) - line);
        frames[at++] = (char)0x81;
        if (size < 126) {
            frames[at++] = (char)size;
        } else {
            frames[at++] = (char)(size < 65536 ? 126 : 127);
            for (int shift = size < 65536 ? 8 : 56; shift >= 0; shift -= 8)
                frames[at++] = (char)((uint64_t)size >> shift);
        }
        memcpy(frames + at, line, size);
        at += size;
        line += size + 1;
    }
    for (int i = subscriber_count; i-- > 0;)
        if (send(subscribers[i], frames, at, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)at) drop(subscribers[i]);
    if (send(fd, done, sizeof done - 1, MSG_NOSIGNAL) < 0) drop(fd);
}

/* Read one request whole; the publisher is on this machine, so waiting for it is short. */
static void serve(int fd) {
    ssize_t have = recv(fd, request, sizeof request - 1, MSG_DONTWAIT);
    if (have < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (have <= 0) { drop(fd); return; }
    request[have] = 0;
    if ((request[0] & 0x80) || !strncmp(request, "GET ", 4)) {
        if (request[0] == 'G') upgrade(fd);
        else if ((request[0] & 15) == 8) drop(fd);
        return;
    }
    const char *end = strstr(request, "\r\n\r\n"), *field = strcasestr(request, "content-length:");
    size_t head = end ? (size_t)(end + 4 - request) : 0;
    size_t whole = head + (field ? strtoul(field + 15, NULL, 10) : 0);
    if (!end || !field || whole >= sizeof request) { drop(fd); return; }
    while ((size_t)have < whole) {
        ssize_t more = recv(fd, request + have, whole - (size_t)have, 0);
        if (more <= 0) { drop(fd); return; }
        have += more;
    }
    publish(fd, request + head, whole - head);
}

int main(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    alarm(LIFETIME_SECONDS);
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("{\"port\":%d,\"version\":\"cc %s\"}\n", ntohs(address.sin_port), __VERSION__);
    fflush(stdout);
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int number = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < number; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) { serve(fd); continue; }
            if ((fd = accept(listener, NULL, NULL)) < 0) continue;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
