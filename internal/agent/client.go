// Package agent is how others reach the API that every node's agent serves:
// where it is, how to ask it, and what it means when it does not answer. The
// node package serves it.
package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"kuorum/internal/cluster"
)

// Port is where an agent's API listens, with mutual TLS.
const Port = 9443

// StatusPath answers GET with a cluster.NodeStatus, probed at that moment.
const StatusPath = "/v1/status"

// patience is how long an agent may take to answer. Its own probes take a
// second at most; a machine that is black-holed costs its caller all of it.
const patience = 1500 * time.Millisecond

// maxAnswer bounds what is read of an answer.
const maxAnswer = 4 << 20

// Client asks agents. It keeps no state but idle connections and may be used
// by several goroutines.
type Client struct {
	http   *http.Client
	config *tls.Config
	dial   Dialer
}

// Dialer connects to host:port. It must end with its context.
type Dialer func(ctx context.Context, address string) (net.Conn, error)

// NewClient uses the certificates of config; each agent must prove the address
// that it is asked at. A nil dial takes this process's own network.
func NewClient(config *tls.Config, dial Dialer) *Client {
	if dial == nil {
		own := &net.Dialer{Timeout: patience}
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			return own.DialContext(ctx, "tcp", address)
		}
	}
	return &Client{config: config, dial: dial, http: &http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, address) },
		TLSClientConfig: config, TLSHandshakeTimeout: patience, IdleConnTimeout: time.Minute,
	}}}
}

// With is a client that asks in the same way, but with other rules of whom to
// believe: change gets the client's settings, which it must leave as they are,
// and returns others, such as those of pki.NamedTLS.
func (c *Client) With(change func(*tls.Config) *tls.Config) *Client {
	return NewClient(change(c.config), c.dial)
}

// Report asks the agent of n for its status. It blocks for 1.5 s at most and
// always returns a report: one with an Error when the agent does not answer.
func (c *Client) Report(ctx context.Context, n cluster.Node) cluster.NodeReport {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	report := cluster.NodeReport{Name: n.Name, Role: n.Role, Address: n.Address}
	asked := time.Now()
	var status cluster.NodeStatus
	if err := c.get(limited, n.Address, StatusPath, &status); err != nil {
		report.Error = Explain(err)
		return report
	}
	answered := time.Now()
	report.Status = &status
	report.ClockOffset = clockOffset(asked, answered, status.Time)
	return report
}

// Reports asks the agents of all nodes at once, and so takes no longer than
// the slowest of them.
func (c *Client) Reports(ctx context.Context, nodes []cluster.Node) []cluster.NodeReport {
	reports := make([]cluster.NodeReport, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() { reports[i] = c.Report(ctx, n) })
	}
	all.Wait()
	return reports
}

func (c *Client) get(ctx context.Context, address, path string, into any) error {
	return c.Call(ctx, address, path, nil, into)
}

// Call posts in as JSON to the agent at address, or gets if it is nil, and
// reads its answer into out, unless that is nil. It blocks until ctx ends. What
// the agent refuses is a *cluster.Problem, word for word.
func (c *Client) Call(ctx context.Context, address, path string, in, out any) error {
	method, body := http.MethodGet, io.Reader(nil)
	if in != nil {
		method = http.MethodPost
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("cannot ask the agent at %s: %w", address, err)
		}
		body = bytes.NewReader(data)
	}
	url := "https://" + net.JoinHostPort(address, strconv.Itoa(Port)) + path
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case resp.StatusCode == http.StatusOK && out != nil:
		return answer.Decode(out)
	case resp.StatusCode == http.StatusOK:
		return nil
	}
	var refused Refusal
	if answer.Decode(&refused) != nil || refused.What == "" {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	return refused.problem()
}

// Refusal is a cluster.Problem on its way from an agent to its caller.
type Refusal struct {
	What string `json:"what"`
	Why  string `json:"why,omitempty"`
	Do   string `json:"do,omitempty"`
	Exit int    `json:"exit"`
}

// Refuse makes a Refusal of any error, and the HTTP status that goes with it.
func Refuse(err error) (Refusal, int) {
	problem, ok := errors.AsType[*cluster.Problem](err)
	if !ok {
		return Refusal{What: err.Error(), Exit: cluster.ExitError}, http.StatusInternalServerError
	}
	r := Refusal{What: problem.What, Why: problem.Why, Do: problem.Do, Exit: problem.ExitCode()}
	if problem.Err != nil {
		r.Why = strings.TrimPrefix(r.Why+"\n"+problem.Err.Error(), "\n")
	}
	switch r.Exit {
	case cluster.ExitUsage:
		return r, http.StatusBadRequest
	case cluster.ExitRefused:
		return r, http.StatusConflict
	case cluster.ExitNoQuorum:
		return r, http.StatusServiceUnavailable
	}
	return r, http.StatusInternalServerError
}

func (r Refusal) problem() error {
	return &cluster.Problem{What: r.What, Why: r.Why, Do: r.Do, Exit: r.Exit}
}

// clockOffset is by how much a clock was ahead that showed remote at some
// moment between asked and answered. The node stamps its answer last, so the
// nearest of the two is taken: an offset below the answer's own time is none.
func clockOffset(asked, answered, remote time.Time) cluster.Duration {
	switch {
	case remote.After(answered):
		return cluster.Duration(remote.Sub(answered))
	case remote.Before(asked):
		return cluster.Duration(remote.Sub(asked))
	}
	return 0
}

// Explain says in words why an agent did not answer.
func Explain(err error) string {
	var network net.Error
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the machine answers, but its agent does not run"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "nobody has its address: the machine is off or cut off"
	case errors.As(err, &certificate):
		return "its agent's certificate is not accepted: " + certificate.Err.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return fmt.Sprintf("no answer within %v: the machine is off, cut off or frozen", patience)
	}
	return err.Error()
}
