package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// A question of 128 bytes says what the answer is: so many bytes.
const (
	questionSize = 128
	answerSize   = 1 << 10
)

// raw marks a question: no record of TLS begins so.
const raw = 'k'

// chunk is what is read and written at a time.
const chunk = 256 << 10

func question(size int64) []byte {
	q := bytes.Repeat([]byte{'.'}, questionSize)
	q[0] = raw
	binary.BigEndian.PutUint64(q[1:], uint64(size)) //nolint:gosec // never negative
	return q
}

// dialer connects to a server, through TLS or not.
type dialer struct {
	config *tls.Config // nil: not
}

func newDialer(caFile string) (dialer, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return dialer{}, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return dialer{&tls.Config{RootCAs: roots, ServerName: serverName, NextProtos: []string{rawProtocol}, MinVersion: tls.VersionTLS13}}, nil
}

func (d dialer) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil || d.config == nil {
		return conn, err
	}
	secured := tls.Client(conn, d.config)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secured, nil
}

// sample is what the clients of a load did.
type sample struct {
	amount float64 // requests, connections or GB
	took   time.Duration
	each   []time.Duration // sorted
}

// quantile in µs. Of fewer than a hundred the p99 is the greatest.
func (s sample) quantile(q float64) float64 {
	if len(s.each) == 0 {
		return 0
	}
	return float64(s.each[min(int(q*float64(len(s.each))), len(s.each)-1)].Nanoseconds()) / 1e3
}

// client is on one connection at a time.
type client struct {
	dialer  dialer
	address string
	conn    net.Conn // nil: none
	buffer  []byte
}

func (c *client) connect(ctx context.Context) (err error) {
	c.close()
	c.conn, err = c.dialer.dial(ctx, c.address)
	return err
}

func (c *client) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// ask asks for so many bytes, and reads them.
func (c *client) ask(size int64) error {
	if _, err := c.conn.Write(question(size)); err != nil {
		return err
	}
	for left := size; left > 0; {
		n, err := c.conn.Read(c.buffer[:min(left, chunk)])
		if left -= int64(n); err != nil && left > 0 {
			return fmt.Errorf("%d bytes are missing: %w", left, err)
		}
	}
	return nil
}

// load is something that clients do again and again.
type load struct {
	name    string
	unit    string // of the rate
	clients int
	per     float64 // CPU is given for so many of the unit
	perText string
	worth   float64 // of one try, in the unit
	try     func(ctx context.Context, c *client) error
}

func (b *bench) loads() []load {
	small := load{unit: "requests/s", per: 1e5, perText: "100,000 requests", worth: 1, try: func(_ context.Context, c *client) error {
		return c.ask(answerSize)
	}}
	fresh := load{unit: "connections/s", per: 1e3, perText: "1,000 connections", worth: 1, try: func(ctx context.Context, c *client) error {
		if err := c.connect(ctx); err != nil {
			return err
		}
		defer c.close()
		return c.ask(answerSize)
	}}
	long := load{unit: "GB/s", per: 1, perText: "GB", worth: float64(b.stream) / 1e9, try: func(_ context.Context, c *client) error {
		return c.ask(b.stream)
	}}
	const streams = 4
	return []load{
		small.by("1 kB, kept connection", 1), small.by("1 kB, kept connection", b.clients),
		fresh.by("1 kB, new connection", 1), fresh.by("1 kB, new connection", b.clients),
		long.by(fmt.Sprintf("%.3g GB", long.worth), 1), long.by(fmt.Sprintf("%.3g GB", long.worth), min(streams, b.clients)),
	}
}

func (l load) by(what string, clients int) load {
	l.clients, l.name = clients, fmt.Sprintf("%s, %d clients", what, clients)
	if clients == 1 {
		l.name = what + ", one client"
	}
	return l
}

// prepare connects the clients; each has had an answer. What it returns is called
// once.
func (l load) prepare(ctx context.Context, d dialer, address string) (run func(time.Duration) (sample, error), err error) {
	clients := make([]*client, l.clients)
	end := func() {
		for _, c := range clients {
			if c != nil {
				c.close()
			}
		}
	}
	for i := range clients {
		c := &client{dialer: d, address: address, buffer: make([]byte, chunk)}
		clients[i] = c
		err := c.connect(ctx)
		if err == nil {
			err = c.ask(answerSize)
		}
		if err != nil {
			end()
			return nil, err
		}
	}
	return func(length time.Duration) (sample, error) {
		defer end()
		return l.run(ctx, clients, length)
	}, nil
}

func (l load) run(ctx context.Context, clients []*client, length time.Duration) (sample, error) {
	begin := time.Now()
	end := begin.Add(length)
	each, errs := make([][]time.Duration, len(clients)), make([]error, len(clients))
	var all sync.WaitGroup
	for i, c := range clients {
		all.Go(func() { each[i], errs[i] = l.repeat(ctx, c, end) })
	}
	all.Wait()
	s := sample{took: time.Since(begin), each: slices.Sorted(slices.Values(slices.Concat(each...)))}
	s.amount = float64(len(s.each)) * l.worth
	return s, errors.Join(append(errs, ctx.Err())...)
}

// repeat tries until that time, or the first failure. It returns how long each took.
func (l load) repeat(ctx context.Context, c *client, end time.Time) (each []time.Duration, err error) {
	for at := time.Now(); at.Before(end) && err == nil && ctx.Err() == nil; {
		err = l.try(ctx, c)
		now := time.Now()
		each, at = append(each, now.Sub(at)), now
	}
	return each, err
}
