/* An epoll echo: what the kernel charges for receiving and sending, and next to nothing beside it. The limit.
 *
 * It reads into one buffer and writes it back at once. What a socket does not take waits in a buffer of the
 * connection's own, and nothing more is read from it until that has gone. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_BYTES (256 * 1024)
#define MOST_EVENTS 256
#define MOST_DESCRIPTORS 65536

struct waiting {
    char *bytes;
    size_t start, end;
};

static struct waiting waiting[MOST_DESCRIPTORS];
static char buffer[READ_BYTES];
static int epoll;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int operation, int descriptor, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = descriptor};
    if (epoll_ctl(epoll, operation, descriptor, &event) < 0) fail("epoll_ctl");
}

static void end(int descriptor) {
    free(waiting[descriptor].bytes);
    memset(&waiting[descriptor], 0, sizeof waiting[descriptor]);
    close(descriptor);
}

static void accept_all(int listening) {
    int descriptor, one = 1;
    while ((descriptor = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (descriptor >= MOST_DESCRIPTORS) {
            close(descriptor);
            continue;
        }
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(EPOLL_CTL_ADD, descriptor, EPOLLIN);
    }
}

static void keep(int descriptor, const char *bytes, size_t size) {
    struct waiting *rest = &waiting[descriptor];
    if (!rest->bytes && !(rest->bytes = malloc(READ_BYTES))) fail("malloc");
    memcpy(rest->bytes, bytes, size);
    rest->start = 0;
    rest->end = size;
    watch(EPOLL_CTL_MOD, descriptor, EPOLLOUT);
}

static void echo(int descriptor) {
    ssize_t received = read(descriptor, buffer, sizeof buffer);
    if (received < 0 && errno == EAGAIN) return;
    if (received <= 0) {
        end(descriptor);
        return;
    }
    ssize_t sent = send(descriptor, buffer, received, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        end(descriptor);
        return;
    }
    if (sent < 0) sent = 0;
    if (sent < received) keep(descriptor, buffer + sent, received - sent);
}

static void go_on(int descriptor) {
    struct waiting *rest = &waiting[descriptor];
    ssize_t sent = send(descriptor, rest->bytes + rest->start, rest->end - rest->start, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        end(descriptor);
        return;
    }
    if (sent > 0) rest->start += sent;
    if (rest->start == rest->end) watch(EPOLL_CTL_MOD, descriptor, EPOLLIN);
}

static int listen_on_loopback(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (listening < 0 || bind(listening, (struct sockaddr *)&address, size) < 0) fail("bind");
    if (listen(listening, 2048) < 0) fail("listen");
    if (getsockname(listening, (struct sockaddr *)&address, &size) < 0) fail("getsockname");
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listening;
}

int main(void) {
    struct epoll_event events[MOST_EVENTS];
    int listening = listen_on_loopback();
    if ((epoll = epoll_create1(0)) < 0) fail("epoll_create1");
    watch(EPOLL_CTL_ADD, listening, EPOLLIN);
    for (;;) {
        int count = epoll_wait(epoll, events, MOST_EVENTS, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            int descriptor = events[i].data.fd;
            if (descriptor == listening) accept_all(listening);
            else if (events[i].events & EPOLLOUT) go_on(descriptor);
            else echo(descriptor);
        }
    }
}
