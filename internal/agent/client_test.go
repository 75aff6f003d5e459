package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"kuorum/internal/cluster"
)

func TestClockOffset(t *testing.T) {
	asked := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	answered := asked.Add(100 * time.Millisecond)
	for _, tc := range []struct {
		remote time.Time
		want   time.Duration
	}{
		{asked.Add(50 * time.Millisecond), 0},
		{asked, 0},
		{answered, 0},
		{answered.Add(10 * time.Minute), 10 * time.Minute},
		{asked.Add(-10 * time.Minute), -10 * time.Minute},
	} {
		if got := clockOffset(asked, answered, tc.remote); got != cluster.Duration(tc.want) {
			t.Errorf("%v: got %v, want %v", tc.remote, got, tc.want)
		}
	}
}

func TestExplain(t *testing.T) {
	wrapped := func(err error) error {
		return &url.Error{Op: "Get", URL: "https://a", Err: &net.OpError{Op: "dial", Err: err}}
	}
	for want, err := range map[string]error{
		"its agent does not run":      wrapped(syscall.ECONNREFUSED),
		"nobody has its address":      wrapped(syscall.EHOSTUNREACH),
		"no answer within 1.5s":       wrapped(context.DeadlineExceeded),
		"certificate is not accepted": fmt.Errorf("outer: %w", &tls.CertificateVerificationError{Err: errors.New("expired")}),
		"something else":              errors.New("something else"),
	} {
		if got := Explain(err); !strings.Contains(got, want) {
			t.Errorf("%v: got %q, want %q in it", err, got, want)
		}
	}
}

// Nobody listens at this address of the loopback: the report must say so, and
// still name the node.
func TestReportOfAStoppedAgent(t *testing.T) {
	client := NewClient(&tls.Config{MinVersion: tls.VersionTLS12}, nil)
	nodes := []cluster.Node{{Name: "cp1", Role: cluster.RoleServer, Address: "127.9.9.1"}, {Name: "w1", Role: cluster.RoleWorker, Address: "127.9.9.2"}}
	reports := client.Reports(t.Context(), nodes)
	for i, r := range reports {
		if r.Name != nodes[i].Name || r.Role != nodes[i].Role || r.Status != nil || !strings.Contains(r.Error, "does not run") {
			t.Errorf("got %+v", r)
		}
	}
}

// An agent that takes the connection and says nothing costs its caller no more
// than the client's patience.
func TestReportOfAFrozenAgent(t *testing.T) {
	ln, err := net.Listen("tcp", fmt.Sprintf("127.9.9.3:%d", Port))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	begin := time.Now()
	r := NewClient(&tls.Config{MinVersion: tls.VersionTLS12}, nil).Report(t.Context(), cluster.Node{Name: "cp1", Address: "127.9.9.3"})
	if !strings.Contains(r.Error, "no answer") || time.Since(begin) > 10*patience {
		t.Errorf("after %v: %+v", time.Since(begin), r)
	}
}
