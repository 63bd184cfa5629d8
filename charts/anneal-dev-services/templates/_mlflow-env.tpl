{{/*
Hosts MLflow answers to. Setting the variable replaces MLflow's defaults, so localhost (port-forward) and the private
ranges are named again. A name and the name with a port are two entries to MLflow.
*/}}
{{- define "dev.mlflowHosts" -}}
{{- $name := include "dev.mlflowName" . -}}
{{- $ns := .Release.Namespace -}}
{{- $hosts := list "localhost" "127.0.0.1" $name (printf "%s.%s" $name $ns) (printf "%s.%s.svc" $name $ns) (printf "%s.%s.svc.cluster.local" $name $ns) -}}
{{- $hosts = concat $hosts .Values.mlflow.publicHosts -}}
{{- $all := list "10.*" "192.168.*" -}}
{{- range $second := untilStep 16 32 1 -}}
{{- $all = append $all (printf "172.%d.*" $second) -}}
{{- end -}}
{{- range $host := $hosts -}}
{{- $all = append $all $host -}}
{{- if not (regexMatch ":[0-9]+$" $host) -}}
{{- $all = append $all (printf "%s:*" $host) -}}
{{- end -}}
{{- end -}}
{{- join "," $all -}}
{{- end -}}

{{/* MLflow refuses a browser's writes from a page of any other origin, its own pages included. */}}
{{- define "dev.mlflowOrigins" -}}
{{- $origins := list -}}
{{- range $host := .Values.mlflow.publicHosts -}}
{{- range $scheme := list "http" "https" -}}
{{- $origins = append $origins (printf "%s://%s" $scheme $host) -}}
{{- end -}}
{{- end -}}
{{- join "," $origins -}}
{{- end -}}

{{- define "dev.mlflowEnv" -}}
- name: MLFLOW_SERVER_ALLOWED_HOSTS
  value: {{ include "dev.mlflowHosts" . | quote }}
{{- with include "dev.mlflowOrigins" . }}
- name: MLFLOW_SERVER_CORS_ALLOWED_ORIGINS
  value: {{ . | quote }}
{{- end }}
# No background jobs: they need a second process and serve features Anneal does not use.
- name: MLFLOW_SERVER_ENABLE_JOB_EXECUTION
  value: "false"
# Neither the server nor its pages in a browser send usage data to MLflow's makers.
- name: MLFLOW_DISABLE_TELEMETRY
  value: "true"
- name: DO_NOT_TRACK
  value: "true"
- name: MLFLOW_S3_ENDPOINT_URL
  value: {{ default (include "dev.s3Endpoint" .) .Values.s3.publicEndpoint }}
- name: AWS_SHARED_CREDENTIALS_FILE
  value: /etc/anneal/storage/credentials
- name: AWS_DEFAULT_REGION
  value: {{ .Values.s3.region }}
- name: HOME
  value: /tmp
- name: GIT_PYTHON_REFRESH
  value: quiet
{{- with .Values.mlflow.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
