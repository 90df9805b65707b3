/*
 * wsload: the clients of a benchmark, in one thread over epoll, against 127.0.0.1 only.
 *
 *     wsload MODE key=value ...
 *
 * MODE is one of
 *     echo    each connection keeps `window` calls in flight
 *     rate    `rate` calls a second over all connections, whatever is answered; latency counts from when each was due
 *     fanout  one publisher keeps `window` messages in flight to `conns` subscribers, beside `stalled` that never read
 *     idle    connect, and hold for `seconds`
 *
 * In templates %ID is a number of eight digits, one higher for each message of a connection; %CONN is the number of the
 * connection; %N counts the repetitions of `extra`.
 *
 *     port pid        the server, and the process whose CPU and memory are read from /proc
 *     path            of the handshake
 *     conns window rate stalled warm seconds
 *     message         template of a call, or of a publication
 *     expect          must be in each answer; of a message, must follow its id
 *     hello           sent when connected; may be repeated: each waits for one frame from the server
 *     extra extras    template of more of these, and how many
 *     acks            frames that come before a connection is ready, if not one for each of those
 *     publisher       a hello of the publisher, which has none of the others; may be repeated
 *     publisher_acks  as `acks`
 *     answered        0 where the server does not answer a publication
 *
 * Each answer must carry the id of a call of that connection that is not answered yet. Each subscriber must get each id
 * once, in order. `bad` counts what did not, `missing` what had not come `drain` seconds after the end, `dead` the
 * connections that ended. The answer is one line of JSON; the exit status is 0 if it could be measured at all.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { RING = 2048, FIRST_ID = 10000000, HELLOS = 8, BURST = 64, CONNECT_SECONDS = 60, ROOM = 1 << 21 };
enum mode { ECHO, RATE, FANOUT, IDLE };
enum role { CALLER, SUBSCRIBER, STALLED, PUBLISHER };
enum state { CONNECTING, UPGRADING, GREETING, READY, DEAD };

struct bytes { uint8_t *at; size_t size, capacity; };

struct conn {
    int fd, number, greeted, acked;
    enum role role;
    enum state state;
    uint32_t next;        /* id of the next call or publication */
    uint32_t due;         /* id that a subscriber gets next */
    uint32_t outstanding; /* calls without an answer */
    bool wants_write;
    struct bytes rest;    /* the beginning of a frame */
    struct bytes out;
    size_t out_done;
    double *sent_at;      /* by id modulo RING; 0 where nothing is outstanding */
};

static struct {
    enum mode mode;
    int port, pid, conns, window, rate, stalled, extras, answered, acks, publisher_acks;
    double warm, seconds, drain;
    const char *name, *path, *message, *expect, *extra, *hello[HELLOS], *publisher[HELLOS];
    int hellos, publisher_hellos;
} o = {.conns = 50, .window = 1, .rate = 1000, .answered = 1, .acks = -1, .publisher_acks = -1, .warm = 0.3,
       .seconds = 1, .drain = 3, .path = "/", .message = "%ID", .expect = ""};

static struct conn *conns, *publisher;
static int epoll_fd, total, ready, dead;
static bool measuring, sending;
static double clock_now;
static uint64_t replies, bad, skipped;
static uint32_t left[RING];       /* subscribers that have not got a publication */
static uint32_t completed;        /* publications that all healthy subscribers have */
static double *latencies;
static size_t latency_count, latency_capacity;
static char bad_sample[161];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *need(void *p) {
    if (!p) { fprintf(stderr, "wsload: out of memory\n"); exit(2); }
    return p;
}

static void reserve(struct bytes *b, size_t more) {
    if (b->size + more > b->capacity) {
        b->capacity = 2 * (b->size + more);
        b->at = need(realloc(b->at, b->capacity));
    }
}

/* ---- the server's process ------------------------------------------------------------------------------------ */

struct cpu { double user, sys; };

static struct cpu server_cpu(void) {
    char name[64], line[1024];
    struct cpu cpu = {0, 0};
    snprintf(name, sizeof name, "/proc/%d/stat", o.pid);
    FILE *file = fopen(name, "r");
    if (!file) return cpu;
    line[fread(line, 1, sizeof line - 1, file)] = 0;
    fclose(file);
    char *rest = strrchr(line, ')'); /* the name of the program may hold anything */
    unsigned long user = 0, sys = 0;
    if (rest) sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &sys);
    double ticks = sysconf(_SC_CLK_TCK);
    cpu.user = user / ticks;
    cpu.sys = sys / ticks;
    return cpu;
}

static long server_rss(void) {
    char name[64], line[256];
    long kb = 0;
    snprintf(name, sizeof name, "/proc/%d/status", o.pid);
    FILE *file = fopen(name, "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file) && sscanf(line, "VmRSS: %ld", &kb) != 1) {}
    fclose(file);
    return kb;
}

/* ---- what is sent -------------------------------------------------------------------------------------------- */

static void watch(struct conn *c, bool write) {
    struct epoll_event e = {.events = EPOLLIN | (write ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
    c->wants_write = write;
}

static void end(struct conn *c) {
    if (c->state == DEAD) return;
    close(c->fd);
    c->state = DEAD;
    dead++;
}

static void flush(struct conn *c) {
    while (c->state != DEAD && c->out_done < c->out.size) {
        ssize_t n = send(c->fd, c->out.at + c->out_done, c->out.size - c->out_done, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            if (!c->wants_write) watch(c, true);
            return;
        }
        if (n < 0) { end(c); return; }
        c->out_done += n;
    }
    c->out.size = c->out_done = 0;
    if (c->state != DEAD && c->wants_write) watch(c, false);
}

static void put_frame(struct conn *c, int opcode, const void *payload, size_t n) {
    static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    reserve(&c->out, n + 14);
    uint8_t *p = c->out.at + c->out.size;
    *p++ = 0x80 | opcode;
    if (n < 126) *p++ = 0x80 | n;
    else if (n < 65536) { *p++ = 0x80 | 126; *p++ = n >> 8; *p++ = n; }
    else { *p++ = 0x80 | 127; for (int shift = 56; shift >= 0; shift -= 8) *p++ = (uint64_t)n >> shift; }
    memcpy(p, mask, 4);
    p += 4;
    for (size_t i = 0; i < n; i++) p[i] = ((const uint8_t *)payload)[i] ^ mask[i & 3];
    c->out.size = p + n - c->out.at;
}

static void put_template(struct conn *c, const char *template, uint32_t id, int count) {
    static struct bytes text;
    text.size = 0;
    reserve(&text, 12 * strlen(template) + 1);
    char *p = (char *)text.at;
    while (*template) {
        if (!strncmp(template, "%ID", 3)) { p += sprintf(p, "%08u", id); template += 3; }
        else if (!strncmp(template, "%CONN", 5)) { p += sprintf(p, "%d", c->number); template += 5; }
        else if (!strncmp(template, "%N", 2)) { p += sprintf(p, "%d", count); template += 2; }
        else *p++ = *template++;
    }
    put_frame(c, 1, text.at, p - (char *)text.at);
}

static void put_call(struct conn *c, double at) {
    uint32_t id = c->next++;
    c->sent_at[id % RING] = at;
    c->outstanding++;
    put_template(c, o.message, id, 0);
}

/* Send the next hello, or be ready. */
static void greet(struct conn *c) {
    bool publishes = c->role == PUBLISHER;
    int hellos = publishes ? o.publisher_hellos : o.hellos, all = hellos + (publishes ? 0 : o.extras);
    int acks = publishes ? o.publisher_acks : o.acks;
    if (c->greeted < hellos) put_template(c, (publishes ? o.publisher : o.hello)[c->greeted], FIRST_ID, 0);
    else if (c->greeted < all) put_template(c, o.extra, FIRST_ID, c->greeted - hellos);
    if (c->greeted < all) c->greeted++;
    if (c->greeted < all || c->acked < (acks < 0 ? all : acks)) return;
    c->state = READY;
    ready++;
    if (c->role == STALLED) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, 0); /* it never reads again */
}

/* ---- what comes ---------------------------------------------------------------------------------------------- */

static void note_bad(const void *what, size_t n) {
    if (!bad++) {
        snprintf(bad_sample, sizeof bad_sample, "%.*s", (int)(n < 160 ? n : 160), (const char *)what);
        for (char *p = bad_sample; *p; p++)
            if (*p == '"' || *p == '\\' || (uint8_t)*p < 32 || (uint8_t)*p > 126) *p = '\'';
    }
}

static void note_latency(double seconds) {
    if (!measuring) return;
    if (latency_count == latency_capacity) {
        latency_capacity = latency_capacity ? 2 * latency_capacity : 1 << 16;
        latencies = need(realloc(latencies, latency_capacity * sizeof *latencies));
    }
    latencies[latency_count++] = seconds;
}

/* The last eight digits of the first number that has as many; 0 if none has. Socket.IO writes a packet's type before an
 * id. *after* is where the number ends. */
static uint32_t id_in(const uint8_t *p, size_t n, size_t *after) {
    uint32_t id = 0;
    int digits = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        if (p[i] >= '0' && p[i] <= '9') { id = id % 10000000 * 10 + (p[i] - '0'); digits++; }
        else if (digits >= 8) break;
        else id = digits = 0;
    }
    *after = i;
    return digits >= 8 ? id : 0;
}

static void on_message(struct conn *c, const uint8_t *p, size_t n) {
    size_t after, size = strlen(o.expect);
    uint32_t id = id_in(p, n, &after);
    if (id < c->due || id >= publisher->next || n - after < size || memcmp(p + after, o.expect, size)) {
        note_bad(p, n);
        return;
    }
    skipped += id - c->due;
    c->due = id + 1;
    if (measuring) replies++;
    if (!--left[id % RING]) {
        note_latency(clock_now - publisher->sent_at[id % RING]);
        completed++;
    }
}

static void on_text(struct conn *c, const uint8_t *p, size_t n) {
    if (n == 1 && *p == '2') { put_frame(c, 1, "3", 1); return; } /* Engine.IO's ping */
    if (c->state == GREETING) {
        if (memmem(p, n, "\"error\"", 7)) note_bad(p, n);
        c->acked++;
        greet(c);
        return;
    }
    if (c->role == SUBSCRIBER) { on_message(c, p, n); return; }
    size_t after;
    uint32_t id = id_in(p, n, &after);
    if (id < FIRST_ID || id >= c->next || !c->outstanding) { note_bad(p, n); return; }
    if (c->role == PUBLISHER) { c->outstanding--; return; } /* its clock stops when the last subscriber has it */
    if (!c->sent_at[id % RING] || !memmem(p, n, o.expect, strlen(o.expect))) { note_bad(p, n); return; }
    note_latency(clock_now - c->sent_at[id % RING]);
    c->sent_at[id % RING] = 0;
    c->outstanding--;
    if (measuring) replies++;
    if (o.mode == ECHO && sending) put_call(c, clock_now);
}

static size_t upgrade(struct conn *c, const uint8_t *p, size_t n) {
    const uint8_t *stop = memmem(p, n, "\r\n\r\n", 4);
    if (!stop) return 0;
    if (memcmp(p, "HTTP/1.1 101", 12) || !memmem(p, n, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", 28)) {
        note_bad(p, n);
        end(c);
        return 0;
    }
    c->state = GREETING;
    greet(c);
    return stop + 4 - p;
}

/* Take one frame off *p*; the bytes it has, 0 if it has not all come. */
static size_t take_frame(struct conn *c, const uint8_t *p, size_t n) {
    if (n < 2) return 0;
    size_t head = 2;
    uint64_t size = p[1] & 127;
    if (size == 126) { if (n < (head = 4)) return 0; size = p[2] << 8 | p[3]; }
    else if (size == 127) { if (n < (head = 10)) return 0; size = 0; for (int i = 2; i < 10; i++) size = size << 8 | p[i]; }
    if (n < head + size) return 0;
    switch (p[0]) {
    case 0x81: case 0x82: on_text(c, p + head, size); break;
    case 0x89: put_frame(c, 10, p + head, size); break;
    case 0x8a: break;
    case 0x88: end(c); break;
    default: note_bad(p, n); end(c);
    }
    return head + size;
}

static void on_readable(struct conn *c) {
    static uint8_t room[ROOM];
    size_t have = c->rest.size, done = 0, taken;
    if (have) memcpy(room, c->rest.at, have);
    ssize_t n = recv(c->fd, room + have, sizeof room - have, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) { end(c); return; }
    if (n < 0) return;
    have += n;
    if (c->state == UPGRADING) done = upgrade(c, room, have);
    while (c->state > UPGRADING && c->state != DEAD && (taken = take_frame(c, room + done, have - done))) done += taken;
    if (c->state == DEAD) return;
    c->rest.size = 0;
    if (have == done) return;
    reserve(&c->rest, have - done);
    memcpy(c->rest.at, room + done, c->rest.size = have - done);
}

static void on_connected(struct conn *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) { end(c); return; }
    c->state = UPGRADING;
    reserve(&c->out, strlen(o.path) + 256);
    c->out.size = sprintf((char *)c->out.at,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", o.path, o.port);
    watch(c, false);
}

static void on_event(struct conn *c, uint32_t events) {
    if (c->state == DEAD) return;
    if (c->state == CONNECTING) on_connected(c);
    else if (events & EPOLLIN) on_readable(c);
    else if (events & (EPOLLERR | EPOLLHUP)) end(c);
    if (c->state != DEAD && c->out.size) flush(c);
}

static void turn(double until) {
    struct epoll_event events[512];
    double wait = until - now();
    if (wait > 0) {
        struct timespec t = {0, wait > 0.05 ? 50000000 : (long)(wait * 1e9)};
        struct pollfd p = {.fd = epoll_fd, .events = POLLIN};
        ppoll(&p, 1, &t, NULL); /* epoll_wait counts in milliseconds */
    }
    int n = epoll_wait(epoll_fd, events, 512, 0);
    clock_now = now();
    for (int i = 0; i < n; i++) on_event(events[i].data.ptr, events[i].events);
}

/* ---- the modes ----------------------------------------------------------------------------------------------- */

static void open_conn(struct conn *c) {
    int one = 1, small = 4096;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(o.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) { perror("wsload: socket"); exit(2); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->role == STALLED) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (connect(c->fd, (void *)&address, sizeof address) && errno != EINPROGRESS) { perror("wsload: connect"); exit(2); }
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

static void open_all(void) {
    double limit = now() + CONNECT_SECONDS;
    total = o.conns + (o.mode == FANOUT ? o.stalled + 1 : 0);
    conns = need(calloc(total, sizeof *conns));
    for (int i = 0; i < total; i++) {
        struct conn *c = &conns[i];
        c->number = i;
        c->next = c->due = FIRST_ID;
        c->role = o.mode != FANOUT ? CALLER : i < o.conns ? SUBSCRIBER : i < o.conns + o.stalled ? STALLED : PUBLISHER;
        if (c->role == PUBLISHER) publisher = c;
        if (o.mode != IDLE && (c->role == CALLER || c->role == PUBLISHER)) c->sent_at = need(calloc(RING, sizeof(double)));
    }
    for (int opened = 0; ready < total; turn(now() + 0.05)) {
        while (opened < total && opened - ready - dead < BURST) open_conn(&conns[opened++]);
        if (!dead && now() < limit) continue;
        fprintf(stderr, "wsload: %d of %d connected, %d failed %s\n", ready, total, dead, bad_sample);
        exit(3);
    }
}

static void send_due(double start) {
    static uint64_t count;
    for (double due; sending && (due = start + (double)count / o.rate) <= now(); count++) {
        struct conn *c = &conns[count % o.conns];
        if (c->state != READY || c->sent_at[c->next % RING]) continue;
        put_call(c, due);
        flush(c);
    }
    turn(start + (double)count / o.rate);
}

static void publish_due(void) {
    if (!sending || publisher->state != READY) return;
    while (publisher->next - FIRST_ID < completed + (uint32_t)o.window) {
        left[publisher->next % RING] = o.conns;
        put_call(publisher, now());
    }
    flush(publisher);
}

static void keep_going(double start, double until) {
    if (o.mode == RATE) { send_due(start); return; }
    if (o.mode == FANOUT) publish_due();
    turn(until);
}

static uint64_t missing(void) {
    uint64_t count = skipped;
    for (int i = 0; i < total; i++) {
        struct conn *c = &conns[i];
        if (c->role == SUBSCRIBER) count += publisher->next - c->due;
        else if (c->role == CALLER || (c->role == PUBLISHER && o.answered)) count += c->outstanding;
    }
    return count;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(double share) {
    return latency_count ? latencies[(size_t)(share * (latency_count - 1))] * 1e6 : 0;
}

static double own_cpu(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return use.ru_utime.tv_sec + use.ru_stime.tv_sec + (use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

static void run(void) {
    double start = clock_now = now(), begin = start, own = 0;
    struct cpu before = {0, 0};
    sending = o.mode != IDLE;
    if (o.mode == ECHO)
        for (int i = 0; i < total; i++) {
            for (int k = 0; k < o.window; k++) put_call(&conns[i], start);
            flush(&conns[i]);
        }
    for (double t = start; t < start + o.warm + o.seconds; t = now()) {
        if (!measuring && t >= start + o.warm) {
            measuring = true;
            begin = t;
            before = server_cpu();
            own = own_cpu();
        }
        keep_going(start, measuring ? start + o.warm + o.seconds : start + o.warm);
    }
    double seconds = now() - begin;
    struct cpu after = server_cpu();
    own = own_cpu() - own;
    measuring = sending = false;
    long rss = server_rss();
    int died = dead;
    for (double limit = now() + o.drain; o.mode != IDLE && missing() && now() < limit; turn(now() + 0.02)) {}
    qsort(latencies, latency_count, sizeof *latencies, by_size);
    double user = after.user - before.user, sys = after.sys - before.sys, each = 1e6 / (replies ? replies : 1);
    printf("\"replies\":%lu,\"seconds\":%.4f,\"rate\":%.1f,\"cpu_us\":%.4f,\"user_us\":%.4f,\"sys_us\":%.4f,"
           "\"server_share\":%.3f,\"load_share\":%.3f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"rss_kb\":%ld,"
           "\"bad\":%lu,\"missing\":%lu,\"dead\":%d,\"bad_sample\":\"%s\"}\n",
           replies, seconds, replies / seconds, (user + sys) * each, user * each, sys * each, (user + sys) / seconds,
           own / seconds, percentile(0.5), percentile(0.99), rss, bad, missing(), died > dead ? died : dead, bad_sample);
}

/* ---- the command line ---------------------------------------------------------------------------------------- */

static void set(const char *key, const char *value) {
    struct { const char *key; int *number; double *seconds; const char **text; } options[] = {
        {"port", &o.port, 0, 0}, {"pid", &o.pid, 0, 0}, {"conns", &o.conns, 0, 0}, {"window", &o.window, 0, 0},
        {"rate", &o.rate, 0, 0}, {"stalled", &o.stalled, 0, 0}, {"extras", &o.extras, 0, 0}, {"acks", &o.acks, 0, 0},
        {"publisher_acks", &o.publisher_acks, 0, 0}, {"answered", &o.answered, 0, 0}, {"warm", 0, &o.warm, 0},
        {"seconds", 0, &o.seconds, 0}, {"drain", 0, &o.drain, 0}, {"path", 0, 0, &o.path},
        {"message", 0, 0, &o.message}, {"expect", 0, 0, &o.expect}, {"extra", 0, 0, &o.extra},
        {"hello", 0, 0, o.hellos < HELLOS ? &o.hello[o.hellos] : 0},
        {"publisher", 0, 0, o.publisher_hellos < HELLOS ? &o.publisher[o.publisher_hellos] : 0},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (strcmp(key, options[i].key)) continue;
        if (options[i].number) *options[i].number = atoi(value);
        else if (options[i].seconds) *options[i].seconds = atof(value);
        else if (options[i].text) *options[i].text = value;
        else break;
        if (!strcmp(key, "hello")) o.hellos++;
        if (!strcmp(key, "publisher")) o.publisher_hellos++;
        return;
    }
    fprintf(stderr, "wsload: no option %s\n", key);
    exit(2);
}

static void read_options(int count, char **words) {
    static const char *modes[] = {"echo", "rate", "fanout", "idle"};
    o.mode = 4;
    for (int i = 0; count > 1 && i < 4; i++)
        if (!strcmp(words[1], modes[i])) { o.mode = i; o.name = modes[i]; }
    if (!o.name) { fprintf(stderr, "usage: wsload echo|rate|fanout|idle key=value ...\n"); exit(2); }
    for (int i = 2; i < count; i++) {
        char *value = strchr(words[i], '=');
        if (!value) { fprintf(stderr, "wsload: %s is no key=value\n", words[i]); exit(2); }
        *value = 0;
        set(words[i], value + 1);
    }
    if (o.window < 1 || o.window > RING || o.conns < 1 || o.rate < 1 || (o.extras && !o.extra)) {
        fprintf(stderr, "wsload: out of range\n");
        exit(2);
    }
}

int main(int count, char **words) {
    read_options(count, words);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(0);
    long rss = server_rss();
    struct cpu before = server_cpu();
    double start = now();
    open_all();
    double seconds = now() - start;
    struct cpu after = server_cpu();
    printf("{\"mode\":\"%s\",\"conns\":%d,\"connects_per_s\":%.1f,\"connect_cpu_us\":%.2f,\"rss_before_kb\":%ld,",
           o.name, total, total / seconds, (after.user - before.user + after.sys - before.sys) / total * 1e6, rss);
    run();
    return 0;
}
